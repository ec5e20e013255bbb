Feature: Deadlines
  A deadline bounds the last event of a task. A task that cannot make it is refused before
  it costs anybody anything, and one that turns out not to make it is ended.

  @ORCH-3014
  Rule: A deadline that cannot be met is refused at once

    Scenario: A task that would end too late is refused, with the predicted end
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      When a task arrives, due in 400 ms
      Then it is refused as DEADLINE_UNMET by rule deadline
      And the refusal names predicted_end_ms as 450
      And it is worth retrying

    Scenario: A task that just makes it is admitted
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      When a task arrives, due in 450 ms
      Then it is admitted at position 0, to start in 150 ms

    @portable
    Scenario Outline: A deadline of <duration> is none
      When a task arrives, due in <duration>
      Then it is refused as INVALID_PARAMS

      Examples: below and above what a deadline may be
        | duration   |
        | 0 ms       |
        | 25 hours   |

  @ORCH-3014
  Rule: A deadline that passes ends the task

    Scenario: A waiting task whose deadline passes never reaches an engine
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives, due in 5 seconds
      When 5 seconds pass
      Then it fails as DEADLINE_UNMET after 0 tokens, worth retrying
      And 1 task reached the engine of "home"

    Scenario: Until its deadline a task keeps its place
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives, due in 5 seconds
      When 4.999 seconds pass
      Then it is at position 0

    Scenario: A running task whose deadline passes leaves what it has said
      Given the engine of "home" holds its tokens back
      And a task arrives, due in 5 seconds
      And the engine of "home" gives 3 tokens
      When 5 seconds pass
      Then it fails as DEADLINE_UNMET after 3 tokens, worth retrying
      And the transcript of it has 3 tokens
      And the engine of "home" was told to stop 1 time

    Scenario: The slot of a task that ran out of time is used again
      Given pool "home" runs 1 task at a time and queues 4
      And the engine of "home" holds its tokens back
      And the task "late" arrives, due in 5 seconds
      And the task "next" arrives
      When 6 seconds pass
      Then "late" is failed
      And "next" is starting
