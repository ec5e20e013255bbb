Feature: Engines that fail
  An engine may refuse, break off, babble or fall silent. The client has its 200 by then, so
  it learns by an event, with a code that says whether to try again.

  @OC-CTRL-2034
  Rule: A failure after the stream began is an error event

    Scenario Outline: An engine that <fault> after <count> tokens ends the task as <code>
      Given the engine of "home" <fault> after <count> tokens
      When a task arrives
      And 5 seconds pass
      Then it fails as <code> after <count> tokens, <worth> retrying

      Examples: what engines do
        | fault            | count | code              | worth |
        | breaks off       | 0     | WORKER_RESET      | worth |
        | breaks off       | 2     | WORKER_RESET      | worth |
        | sends garbage    | 2     | WORKER_RESET      | worth |
        | reports an error | 2     | WORKER_RESET      | worth |
        | refuses the task | 0     | INVALID_PARAMS    | not   |
        | is full          | 0     | REPLICA_EXHAUSTED | worth |

    @OD-24
    Scenario: A failure before the first token is tried again
      Given the engine of "home" breaks off once after 0 tokens
      When a task arrives
      And 5 seconds pass
      Then it ends with length after 20 tokens

    @OC-CORE-1014
    Scenario: A replica that fails task after task gets no more work
      Given the engine of "home" breaks off after 0 tokens
      And a task arrives
      And 1 second passes
      When the task "next" arrives
      Then "next" is refused as REPLICA_EXHAUSTED
      And it is worth retrying

    @OD-25
    Scenario: A replica that failed task after task works again once a probe has succeeded
      Given the engine of "home" breaks off after 0 tokens
      And a task arrives
      And 6 seconds pass
      When the task "next" arrives
      Then "next" ends with length after 20 tokens

    Scenario: What was said before the failure is kept
      Given the engine of "home" breaks off after 2 tokens
      When a task arrives
      Then it fails as WORKER_RESET
      And the transcript of it has 2 tokens

    Scenario: The next task is served all the same
      Given the engine of "home" refuses the task
      And the task "refused" arrives
      When the task "next" arrives
      Then "refused" is failed
      And "next" ends with length after 20 tokens

    Scenario: The error says what the engine said
      Given the engine of "home" refuses the task
      When a task arrives
      Then the message of it says "this is not for me"

  @OC-CTRL-2034
  Rule: A failure before the stream is an HTTP error

    Scenario: A task for an engine that is down gets no stream
      Given the engine of "home" goes down
      When a task arrives
      Then it is refused as POOL_UNAVAILABLE
      And there is no trace of it

  @OC-CORE-1022
  Rule: An engine that stays silent or runs too long is given up

    Scenario: No first token in time ends the task
      Given "home" gives up on an engine that is silent for 30 seconds
      And the engine of "home" falls silent after 0 tokens
      And a task arrives
      When 31 seconds pass
      Then it fails as DECODE_TIMEOUT after 0 tokens, worth retrying

    Scenario: Silence after some tokens ends the task
      Given "home" gives up on an engine that is silent for 30 seconds
      And the engine of "home" falls silent after 2 tokens
      And a task arrives
      When 31 seconds pass
      Then it fails as DECODE_TIMEOUT after 2 tokens, worth retrying

    Scenario: Until then the task goes on
      Given "home" gives up on an engine that is silent for 30 seconds
      And the engine of "home" falls silent after 2 tokens
      And a task arrives
      When 29 seconds pass
      Then it is running

    Scenario: A task that never stops is stopped
      Given "home" lets no task run longer than 1 minute
      And the engine of "home" takes 1000 ms for a token
      And the engine of "home" never stops
      And a task arrives, of 200 tokens
      When 61 seconds pass
      Then it fails as DECODE_TIMEOUT
