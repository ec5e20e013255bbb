Feature: Readers
  One task may be watched from an editor, a dashboard and a log at the same time. None of them
  may cost the others anything, and when all have gone, the work need not go on.

  @OC-CTRL-2029 @OC-CTRL-2021
  Rule: Any number of readers see the same

    Scenario: Two readers get the same bytes
      Given the engine of "home" holds its tokens back
      And a task arrives
      And "early" reads it
      And the engine of "home" gives 2 tokens
      And "late" reads it
      When the engine of "home" is let go
      Then "early" and "late" got the same log, byte for byte

    Scenario: A reader that left in between does not disturb the other
      Given the engine of "home" holds its tokens back
      And a task arrives, of 4 tokens
      And "first" reads it
      And "second" reads it
      And "first" leaves
      When the engine of "home" is let go
      Then "second" sees events 1 to 6 and no others

  @OC-CTRL-2029
  Rule: When the last reader has gone, the task is canceled after a grace

    Background:
      Given the engine of "home" holds its tokens back
      And a task arrives

    Scenario: Thirty seconds after the last reader left the task is canceled
      Given "only" reads it
      And "only" leaves
      When 30 seconds pass
      Then it is canceled
      And the engine of "home" was told to stop 1 time

    Scenario: Until then it goes on
      Given "only" reads it
      And "only" leaves
      When 29 seconds pass
      Then it is starting

    Scenario: A reader that comes back in time keeps it alive
      Given "only" reads it
      And "only" leaves
      And "again" reads it
      When 29 seconds pass
      Then it is starting

    Scenario: Another reader keeps it alive
      Given "first" reads it
      And "second" reads it
      And "first" leaves
      When 60 seconds pass
      Then it is starting

    Scenario: A task that never had a reader goes on
      When 60 seconds pass
      Then it is starting

    Scenario: A task that should go on unread does
      Given the task "unread" arrives, that goes on unread
      And "only" reads "unread"
      And "only" leaves
      When 60 seconds pass
      Then "unread" is starting

  @OC-CTRL-2027
  Rule: A slow reader delays nobody

    Scenario: A reader that takes nothing for thirty seconds is cut, the others are not
      Given the engine of "home" writes 60 tokens of 100 KB
      And a task arrives
      And "stuck" reads it and takes nothing more
      And it has been read to the end
      When 31 seconds pass
      Then "stuck" is cut off before the end
