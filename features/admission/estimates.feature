Feature: Estimates
  A client decides by the predicted start whether to wait or to go elsewhere, so the figure
  must follow from what the pool has ahead: before any experience 100 ms and 20 ms per token.

  @OC-CTRL-2010
  Rule: The start follows from what runs and what waits

    Background:
      Given pool "home" runs 1 task at a time and queues 4

    Scenario: Behind a running task the wait is the half of it that is left
      Given "home" is busy
      When a task arrives
      Then it is admitted at position 0, to start in 150 ms

    Scenario: Every waiting task ahead adds its whole length
      Given "home" is busy
      And interactive tasks "A" and "B" arrive
      When a task arrives
      Then it is admitted at position 2, to start in 750 ms

    Scenario: Interactive work does not count the batch work it overtakes
      Given "home" is busy
      And batch tasks "A" and "B" arrive
      When an interactive task arrives
      Then it is admitted at position 0, to start in 150 ms

    Scenario: A task that expects few tokens holds up the next one less
      Given "home" is busy
      And the task "short" arrives, that expects 5 tokens
      When a task arrives
      Then it is admitted at position 1, to start in 350 ms

    Scenario: What was observed replaces what was assumed
      Given the engine of "home" takes 125 ms for a token
      And a task arrives
      And 3 seconds pass
      And "home" is busy
      When another task arrives
      Then it is admitted at position 0, to start in 1250 ms

    Scenario: A waiting task sees its start come nearer
      Given "home" is busy
      And interactive tasks "A" and "B" arrive
      When somebody cancels "A"
      Then "B" is at position 0
      And "B" has predicted_start_ms 150

  @OC-CTRL-2010
  Rule: Each pool is judged by its own speed

    Scenario Outline: A third of what two tasks take in the <speed> pool
      Given the engine of "quick" takes 125 ms for a token
      And the engine of "slow" takes 250 ms for a token
      And the task "first" arrives, of model "<speed>"
      And 6 seconds pass
      And "<speed>" is busy
      When a task arrives, of model "<speed>"
      Then it is admitted at position 0, to start in <start> ms

      Examples:
        | speed | start |
        | quick | 833   |
        | slow  | 1666  |

  @OC-CTRL-2011
  Rule: Above half full, the next submission is asked to wait

    Background:
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy

    Scenario: Below half full nobody is asked to wait
      When a task arrives
      Then the next one should wait 0 ms

    Scenario: The wait is the time the queue needs to drain to half
      Given interactive tasks "A" and "B" arrive
      When a task arrives
      Then the next one should wait 300 ms
