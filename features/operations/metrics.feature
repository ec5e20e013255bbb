Feature: Figures
  What monitoring counts must be what happened: every task is counted where it entered and
  where it left, under labels that are ours and few.

  @OD-12
  Rule: Figures are served as text for Prometheus

    @portable @smoke
    Scenario: A scrape has the queue of every pool
      When Prometheus scrapes
      Then the answer has a figure of queue_depth

  @OC-METRICS-7101
  Rule: The figures tell what happened

    Scenario: A finished task is counted where it entered and where it left
      Given the engine of "home" takes 50 ms for a token
      And a task arrives
      When 2 seconds pass
      Then the figures are
        | series                          | labels                        | value |
        | tasks_enqueued_total            | pool_id=home, replica_id=none | 1     |
        | tasks_started_total             | pool_id=home, replica_id=r0   | 1     |
        | orchestratord_tasks_ended_total | outcome=end, phase=running    | 1     |
        | tokens_in_total                 | pool_id=home, replica_id=r0   | 4     |
        | tokens_out_total                | pool_id=home, replica_id=r0   | 20    |
        | latency_first_token_ms_sum      | priority=interactive          | 50    |
        | latency_decode_ms_sum           | priority=interactive          | 950   |
        | placement_candidates_considered |                               | 1     |

    Scenario: What waits and runs now is shown as it is now
      Given pool "home" runs 1 task at a time and queues 8
      And "home" is busy
      And interactive tasks "A" and "B" arrive
      When a batch task "C" arrives
      Then the figures are
        | series        | labels                             | value |
        | queue_depth   | pool_id=home, priority=interactive | 2     |
        | queue_depth   | pool_id=home, priority=batch       | 1     |
        | active_leases | pool_id=home                       | 1     |
        | pool_ready    | pool_id=home                       | 1     |

    Scenario: Refusals are counted by their reason
      Given pool "home" runs 1 task at a time and queues 1
      And "home" is busy
      And a task "waiting" arrives
      And a task "rejected" arrives
      When a task "late" arrives, due in 1 ms
      Then the figures are
        | series                              | labels                | value |
        | tasks_rejected_total                | reason=reject         | 1     |
        | tasks_rejected_total                | reason=deadline_unmet | 1     |
        | admission_backpressure_events_total | policy=reject         | 1     |

    Scenario: Ends ahead of time are counted by what ended them
      Given the engine of "home" holds its tokens back
      And a task "stopped" arrives
      And a task "expired" arrives, due in 5 seconds
      And somebody cancels "stopped"
      When 5 seconds pass
      Then the figures are
        | series               | labels          | value |
        | tasks_canceled_total | reason=client   | 1     |
        | tasks_canceled_total | reason=deadline | 1     |

    Scenario: A pool that is down shows as not ready
      When the engine of "home" goes down
      Then the figures are
        | series                             | labels          | value |
        | pool_ready                         | pool_id=home    | 0     |
        | orchestratord_replica_losses_total | pool_id=home    | 1     |
        | gpu_utilization                    |                 | none  |

  @OC-CORE-1040 @OC-CORE-1041
  Rule: Every task that entered is accounted for

    Scenario: In the middle of a workload the figures add up
      Given pool "home" runs 1 task at a time and queues 8
      And a task "finished" arrives
      And "home" is busy
      And interactive tasks "A", "B" and "C" arrive
      When somebody cancels "A"
      Then the figures of tasks add up

    Scenario: After failures the figures add up
      Given the engine of "home" breaks off after 2 tokens
      And a task "broken" arrives
      And a task "next" arrives
      When "next" has been read to the end
      Then the figures of tasks add up

  @OC-METRICS-7102
  Rule: No text of a client is a label

    Scenario: Ids, prompts and names of a client are no labels
      Given a task "good" arrives
      When a task arrives, of model "a-model-of-mine"
      Then it is refused as POOL_UNREADY
      And no label has the text of a client
