Feature: The queue
  People wait for interactive work and nobody waits for batch work, so one goes before the
  other; within each, whoever came first goes first.

  @ORCH-3004
  Rule: Interactive before batch, first come first served within each

    Background:
      Given pool "home" runs 1 task at a time and queues 4
      And the engine of "home" takes 100 ms for a token

    Scenario: An interactive task overtakes the batch tasks that wait
      Given a task "running" arrives
      And batch tasks "A" and "B" arrive
      And an interactive task "urgent" arrives
      When 1 minute passes
      Then "running", "urgent", "A" and "B" started in this order

    Scenario: A running batch task is not interrupted
      Given a batch task "long" arrives
      When an interactive task "urgent" arrives
      Then "long" is starting
      And "urgent" is at position 0

    Scenario: Tasks of one priority start in the order they came
      Given interactive tasks "A", "B", "C" and "D" arrive
      When 1 minute passes
      Then "A", "B", "C" and "D" started in this order
      And "B" started 2000 ms after it arrived

  @OC-CORE-1019
  Rule: Every free slot is used, and none twice

    Scenario: As many tasks run as there are slots
      Given pool "home" runs 3 tasks at a time
      And the engine of "home" holds its tokens back
      When interactive tasks "A", "B", "C" and "D" arrive
      Then "A", "B" and "C" are starting
      And "D" is queued

    Scenario: A slot that comes free goes to the next task
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And interactive tasks "A" and "B" arrive
      When somebody cancels "busy 1"
      Then "A" is starting
      And "B" is at position 0

    Scenario: Tasks spread over the replicas of a pool
      Given pool "home" has 2 replicas with one slot each
      And the engine of "home" holds its tokens back
      When interactive tasks "A" and "B" arrive
      Then "A" ran on replica "r0"
      And "B" ran on replica "r1"
