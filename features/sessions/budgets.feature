Feature: Budgets
  An agent that runs wild should run into a wall before it has used up the machine. A session
  may have a budget of tokens, engine time and cost; it is never overspent and never lost.

  @ORCH-3099
  Rule: What a task may need at most is held, what it did not use comes back

    Background:
      Given a session may spend 100 tokens

    Scenario: An admission tells what is left
      Given the engine of "home" holds its tokens back
      When a task arrives, in session "S"
      Then 60 tokens are left
      And session "S" has 60 tokens left to spend

    Scenario: At its end a task has spent what the engine counted
      When a task arrives, in session "S"
      Then session "S" has 76 tokens left to spend

    Scenario: A task that never ran has spent nothing
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives, in session "S"
      When somebody cancels it
      Then session "S" has 100 tokens left to spend

    Scenario: A task that failed has spent its prompt, as bounded, and what it said
      Given the engine of "home" breaks off after 2 tokens
      When a task arrives, in session "S"
      Then it is failed
      And session "S" has 78 tokens left to spend

    Scenario: A stream tells what is left of every budget when it begins
      Given a session may spend 100 tokens, 2 hours of engine time and 5 units at 2 units a task
      And the engine of "home" holds its tokens back
      And a task arrives, in session "S"
      When somebody reads it
      Then 60 tokens, 3600000 milliseconds and 3 units are left

  @ORCH-3099
  Rule: What does not fit is refused

    Scenario: A task that might overspend is refused until the session expires
      Given a session may spend 50 tokens
      And a task "first" arrives, in session "S"
      When a task "second" arrives, in session "S"
      Then it is refused as ADMISSION_REJECT
      And the policy is "budget-tokens"
      And it is not worth retrying
      And room is expected in 600000 ms

    Scenario: A smaller task may still fit
      Given a session may spend 50 tokens
      And a task "first" arrives, in session "S"
      When a task "second" arrives, in session "S", of 5 tokens
      Then it ends with length after 5 tokens

    Scenario: Engine time is held up to the deadline
      Given a session may spend 10 seconds of engine time
      When a task arrives, in session "S", due in 11 seconds
      Then it is refused as ADMISSION_REJECT
      And the policy is "budget-time"

    Scenario: Engine time is spent while a task has its slot
      Given a session may spend 10 seconds of engine time
      And the engine of "home" takes 125 ms for a token
      And a task arrives, in session "S", due in 4 seconds
      When 3 seconds pass
      Then 6000 milliseconds are left
      And session "S" has 7500 milliseconds left to spend

    Scenario: Cost follows the tariff
      Given a session may spend 5 units at 2 units a task
      And a task "first" arrives, in session "S"
      And a task "second" arrives, in session "S"
      When a task "third" arrives, in session "S"
      Then it is refused as ADMISSION_REJECT
      And the policy is "budget-cost"
      And session "S" has 1 unit left to spend

  @ORCH-3099
  Rule: Deleting a session gives nothing back

    Scenario: What was spent stays spent in a session that begins again
      Given a session may spend 50 tokens
      And a task "first" arrives, in session "S"
      And session "S" is deleted
      When a task "second" arrives, in session "S"
      Then it is refused as ADMISSION_REJECT
      And the policy is "budget-tokens"
