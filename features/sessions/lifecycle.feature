Feature: Sessions
  Tasks of one conversation share an account: how many turns it had, how long it will be
  remembered, whether an engine still holds its beginning. The account holds no text.

  @ORCH-3021
  Rule: A session begins with its first admitted task

    @portable @smoke
    Scenario: Looking at a session does not create it
      When somebody looks at session "S"
      Then it is refused as NOT_FOUND
      And there is no session "S"

    Scenario: The first task begins it
      When a task arrives, in session "S"
      Then session "S" shows 1 of 8 turns
      And session "S" has 10 minutes left

    Scenario: A refused task does not begin one
      When a task arrives, in session "S", with a context of 2000000000
      Then there is no session "S"

    @portable
    Scenario: Every admitted task is a turn
      Given a task "first" arrives, in session "S"
      When a task "second" arrives, in session "S"
      Then session "S" shows 2 turns

  @ORCH-3021
  Rule: It expires after ten minutes without a live task

    Scenario: Time counts from the end of the last task
      Given a task arrives, in session "S"
      When 4 minutes pass
      Then session "S" has 6 minutes left

    Scenario: After ten minutes it is gone
      Given a task arrives, in session "S"
      When 10 minutes pass
      Then there is no session "S"

    Scenario: While a task of it lives no time counts
      Given pool "home" gives up on nothing
      And the engine of "home" holds its tokens back
      And a task arrives, in session "S"
      When 20 minutes pass
      Then session "S" has 10 minutes left

    Scenario: A new task starts the time anew
      Given a task "first" arrives, in session "S"
      And 4 minutes pass
      When a task "second" arrives, in session "S"
      Then session "S" has 10 minutes left

    Scenario: A refusal does not prolong it
      Given a task "first" arrives, in session "S"
      And 4 minutes pass
      When a task arrives, in session "S", with a context of 2000000000
      Then session "S" has 6 minutes left

    Scenario: An expired session begins again from nothing
      Given a task "first" arrives, in session "S"
      And 10 minutes pass
      When a task "second" arrives, in session "S"
      Then session "S" shows 1 turn

  @ORCH-3022
  Rule: It has a bounded number of turns

    Scenario: The turn beyond the last is refused until the session expires
      Given session "S" has used 8 turns
      And 1 minute passes
      When a task arrives, in session "S"
      Then it is refused as ADMISSION_REJECT
      And the policy is "session-turns"
      And it is not worth retrying
      And room is expected in 540000 ms

    Scenario: The number is configured
      Given a session has 2 turns
      And session "S" has used 2 turns
      When a task arrives, in session "S"
      Then it is refused as ADMISSION_REJECT
      And session "S" shows 2 of 2 turns

    Scenario: A session may have several live tasks
      Given the engine of "home" holds its tokens back
      And a task "first" arrives, in session "S"
      When a task "second" arrives, in session "S"
      Then "first" and "second" are starting

  @ORCH-3023
  Rule: Warmth is claimed only while it is true

    Scenario: A session is warm once an engine holds its prefix
      When a task arrives, in session "S"
      Then session "S" is warm

    Scenario: An engine that keeps no prefixes makes nothing warm
      Given the engine of "home" keeps no prefixes
      When a task arrives, in session "S"
      Then session "S" is cold

    Scenario: An engine that was restarted has forgotten
      Given a task arrives, in session "S"
      And the engine of "home" goes down
      When the engine of "home" comes back
      Then session "S" is cold

    Scenario: What it takes in the engine's memory is told as long as it is there
      Given the engine of "home" keeps 1000 bytes for a token
      When a task "first" arrives, in session "S"
      Then session "S" takes 1000 bytes for each token of "first" but the last

    Scenario: It is what the last task left there
      Given the engine of "home" keeps 1000 bytes for a token
      And a task "first" arrives, in session "S"
      When a task "second" arrives, in session "S"
      Then session "S" takes 1000 bytes for each token of "second" but the last

    Scenario: An engine that went down holds nothing
      Given the engine of "home" keeps 1000 bytes for a token
      And a task arrives, in session "S"
      When the engine of "home" goes down
      Then what session "S" takes is not known

    Scenario: An engine that leaves open what a token takes leaves it open for a session
      When a task arrives, in session "S"
      Then session "S" is warm
      And what session "S" takes is not known

    Scenario: As many other tasks as there are slots may have overwritten it
      Given a task "mine" arrives, in session "S"
      And a task "other" arrives
      When a task "third" arrives
      Then session "S" is cold

  @ORCH-3023
  Rule: Deleting it ends what belongs to it

    Scenario: Deleting a session cancels its tasks and no others
      Given the engine of "home" holds its tokens back
      And a task "mine" arrives, in session "S"
      And a task "other" arrives, in session "T"
      When session "S" is deleted
      Then it succeeds without content
      And "mine" is canceled
      And "other" is starting

    @portable @smoke
    Scenario: A deleted session is unknown
      Given a task arrives, in session "S"
      When session "S" is deleted
      Then it succeeds without content
      And there is no session "S"

    @portable
    Scenario: A session nobody began cannot be deleted
      When session "S" is deleted
      Then it is refused as NOT_FOUND

    Scenario: A deletion that cannot be recorded is refused
      Given a task arrives, in session "S"
      And the journal breaks
      When session "S" is deleted
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
