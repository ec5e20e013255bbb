Feature: Faults
  Whatever goes wrong, the client gets the same shape of answer, with an id under which the
  log tells the rest. Nothing of the inside comes out.

  @OD-14
  Rule: A bug is told as INTERNAL and shows nothing

    Scenario: Any operation with a bug answers INTERNAL
      Given every operation has a bug
      When every operation is called
      Then all operations of the contracts are refused as INTERNAL
      And nothing of "secret of the inside" is shown
      And the log has the fault under the same correlation id

  @OD-14
  Rule: What does not exist and what cannot be an id are told apart

    @portable
    Scenario: Nothing is found under an id nothing has
      When every operation on one thing is called with an id nothing has
      Then each is refused as NOT_FOUND

    @portable
    Scenario: What is no id is refused as such
      When every operation on one thing is called with what is no id
      Then each is refused as INVALID_PARAMS

  @OD-14
  Rule: What is too large or too slow is refused before any operation

    @portable
    Scenario: A long URL is refused
      When GET /v1/pools is requested by a URL of 9000 bytes
      Then it is refused as URI_TOO_LONG

    @portable
    Scenario: A large head is refused
      When GET /healthz is requested with a header of 20000 bytes
      Then it is refused as HEADERS_TOO_LARGE

    Scenario: Half a request is not waited for
      Given a request head may take 50 ms to arrive
      When half a request head arrives and no more
      Then it is refused as REQUEST_TIMEOUT

    Scenario: One connection too many is told to come back
      Given the daemon takes 1 connection at a time
      When a second client connects
      Then it is refused as OVERLOADED
      And it may be retried after 1 second
