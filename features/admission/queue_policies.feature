Feature: What a full queue does
  Where people and batch jobs share a pool, an operator may let batch work give way before
  anybody is turned away. Interactive work never gives way, and who loses a place is told.

  @ORCH-3005
  Rule: drop-lru gives the place of the oldest batch task to the newcomer

    Background:
      Given pool "home" runs 1 task at a time and queues 2
      And "home" follows policy drop-lru
      And "home" is busy

    Scenario: The oldest batch task makes way, and learns why
      Given batch tasks "A" and "B" arrive
      When an interactive task "new" arrives
      Then "new" is queued
      And "B" is queued
      And "A" fails as QUEUE_FULL_DROP_LRU after 0 tokens, worth retrying

    Scenario: A batch task makes way for a newer one, too
      Given batch tasks "A" and "B" arrive
      When a batch task "new" arrives
      Then "B" and "new" are queued
      And "A" fails as QUEUE_FULL_DROP_LRU after 0 tokens, worth retrying

    Scenario: Interactive tasks never make way
      Given interactive tasks "A" and "B" arrive
      When an interactive task "new" arrives
      Then "new" is refused as QUEUE_FULL_DROP_LRU
      And the policy is "drop-lru"
      And "A" and "B" are queued

  @ORCH-3005
  Rule: shed-low-priority refuses batch work early

    Background:
      Given pool "home" runs 1 task at a time and queues 5
      And "home" follows policy shed-low-priority
      And "home" is busy

    Scenario: From four fifths on batch work is refused
      Given interactive tasks "A", "B", "C" and "D" arrive
      When a batch task arrives
      Then it is refused as ADMISSION_REJECT
      And the policy is "shed-low-priority"

    Scenario: Below that it is taken
      Given interactive tasks "A", "B" and "C" arrive
      When a batch task arrives
      Then it is queued

    Scenario: Interactive work is taken to the brim
      Given interactive tasks "A", "B", "C" and "D" arrive
      When an interactive task arrives
      Then it is queued

  @OD-22
  Rule: Batch work may be bounded

    Scenario: Batch work may have fewer places than there are
      Given pool "home" runs 1 task at a time and queues 4
      And "home" lets 1 batch task wait
      And "home" is busy
      And a batch task "A" arrives
      When a batch task "B" arrives
      Then "B" is refused as ADMISSION_REJECT

  @OD-22
  Rule: Batch work grows old

    Background:
      Given pool "home" runs 1 task at a time and queues 4
      And the engine of "home" takes 1000 ms for a token

    Scenario: A batch task that has waited long enough goes before interactive work
      Given batch tasks of "home" grow old after 30 seconds
      And interactive tasks "running" and "soon" arrive
      And a batch task "old" arrives
      And an interactive task "later" arrives
      When 2 minutes pass
      Then "running", "soon", "old" and "later" started in this order

    Scenario: Without a bound it waits until no interactive work is left
      Given interactive tasks "running" and "soon" arrive
      And a batch task "old" arrives
      And an interactive task "later" arrives
      When 2 minutes pass
      Then "running", "soon", "later" and "old" started in this order

  @OD-22
  Rule: One caller may be slowed down

    Background:
      Given one caller may submit 1 task a second and 2 at once
      And interactive tasks "A" and "B" arrive

    Scenario: Whoever submits too fast is told when the next one fits
      When another task arrives
      Then it is refused as ADMISSION_REJECT
      And the policy is "rate-limit"
      And it may be retried after 1 second

    Scenario: After that time the next one fits
      Given 1 second passes
      When another task arrives
      Then it is admitted
