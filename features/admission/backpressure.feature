Feature: Backpressure
  A full queue answers at once and says when to come back, so clients need not guess
  and nobody who waits already pays for a newcomer.

  @ORCH-2007 @OC-CTRL-2011
  Rule: A task beyond capacity is refused with advice

    Background:
      Given pool "home" runs 1 task at a time and queues 2
      And "home" is busy

    Scenario: A newcomer to a full queue changes nothing
      Given interactive tasks "A" and "B" arrive
      When a batch task arrives
      Then it is refused as ADMISSION_REJECT
      And "A" is at position 0
      And "B" is at position 1
      But there is no trace of it

    Scenario: The refusal says when room is expected, in both units
      Given interactive tasks "A" and "B" arrive
      When another task arrives
      Then it may be retried after 1 second
      And room is expected in 150 ms
      And the policy is "reject"

    Scenario: Batch and interactive work share the capacity
      Given batch tasks "A" and "B" arrive
      When an interactive task arrives
      Then it is refused as ADMISSION_REJECT
      And "A" and "B" are queued

    Scenario: Room opens as soon as a waiting task goes
      Given interactive tasks "A" and "B" arrive
      And somebody cancels "A"
      When another task arrives
      Then it is admitted at position 1, to start in 450 ms

    Scenario: A refused task is not remembered
      Given interactive tasks "A" and "B" arrive
      And the task "late" arrives
      And somebody cancels "A"
      When "late" is sent again
      Then it is a first answer

  @ORCH-2007
  Rule: The bound is per pool

    Scenario: A full pool does not stand in the way of another one
      Given pool "home" runs 1 task at a time and queues 1
      And pool "spare" runs 1 task at a time and queues 1
      And "home" is busy
      And the task "A" arrives, of model "home"
      When another task arrives, of model "spare"
      Then it ends with length after 20 tokens
