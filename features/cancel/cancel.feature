Feature: Cancelling
  Whoever cancels wants it to be over now: no token comes after the answer, the engine is told
  to stop, and the slot serves the next task only when it is really free.

  @ORCH-3026
  Rule: A waiting task is taken out

    Background:
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy

    Scenario: A canceled task that waited never reaches an engine
      Given a task arrives
      When somebody cancels it
      Then it succeeds without content
      And it ends with canceled after 0 tokens
      And 1 task reached the engine of "home"

    Scenario: Those behind it move up
      Given interactive tasks "A" and "B" arrive
      When somebody cancels "A"
      Then "B" is at position 0

  @ORCH-3026
  Rule: A running task is sealed in one step

    Scenario: No token follows the cancel
      Given the engine of "home" holds its tokens back
      And a task arrives
      And the engine of "home" gives 2 tokens
      And somebody cancels it
      When the engine of "home" is let go
      Then it ends with canceled after 2 tokens
      And the engine of "home" was told to stop 1 time

    Scenario Outline: Wherever the cancel comes, it is the end: after <given> of 5 tokens
      Given the engine of "home" holds its tokens back
      And a task arrives, of 5 tokens
      And the engine of "home" gives <given> tokens
      And somebody cancels it
      When the engine of "home" is let go
      Then it ends with canceled after <given> tokens
      And the cancel names the last event of it

      Examples:
        | given |
        | 0     |
        | 1     |
        | 2     |
        | 3     |
        | 4     |

    Scenario: A reader sees the end at once
      Given the engine of "home" holds its tokens back
      And a task arrives
      And somebody reads it
      When somebody cancels it
      Then somebody sees to the end started metrics end

    Scenario: The answer names the last event there will be
      Given the engine of "home" holds its tokens back
      And a task arrives
      And the engine of "home" gives 2 tokens
      When somebody cancels it
      Then the cancel names the last event of it

    Scenario: The slot serves the next task
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task "next" arrives
      When somebody cancels "busy 1"
      Then "next" is starting

    Scenario: A slot whose engine ignores the abort is not used
      Given pool "home" runs 1 task at a time and queues 4
      And the engine of "home" ignores the abort
      And "home" is busy
      And a task "next" arrives
      And somebody cancels "busy 1"
      When 11 seconds pass
      Then "next" is queued

    Scenario: Once the engine has let go the slot is used again
      Given pool "home" runs 1 task at a time and queues 4
      And the engine of "home" ignores the abort
      And "home" is busy
      And a task "next" arrives
      And somebody cancels "busy 1"
      When the engine of "home" lets go of it
      Then "next" is starting

  @ORCH-3026
  Rule: Cancelling what is over changes nothing

    @portable @smoke
    Scenario: A finished task stays as it ended
      Given a task arrives
      And it has been read to the end
      When somebody cancels it
      Then it succeeds without content
      And it ends well

    Scenario: A second cancel is like the first
      Given the engine of "home" holds its tokens back
      And a task arrives
      And somebody cancels it
      When somebody cancels it
      Then it succeeds without content
      And both cancels of it name the same event

  @OD-16
  Rule: A cancel that cannot be recorded still counts

    Scenario: With a broken journal the cancel is refused and yet sealed
      Given the engine of "home" holds its tokens back
      And a task arrives
      And the journal breaks
      When somebody cancels it
      Then it is refused as STORAGE_UNAVAILABLE
      And it is canceled

    Scenario: Asking again during the outage is refused again
      Given the engine of "home" holds its tokens back
      And a task arrives
      And the journal breaks
      And somebody cancels it
      When somebody cancels it
      Then it is refused as STORAGE_UNAVAILABLE
      And it is canceled
