Feature: Pools
  An operator sees at a glance which pools work, how busy they are, and what went wrong with
  those that do not.

  @ORCH-2101
  Rule: Health tells of a pool, well or not

    @portable @smoke
    Scenario: A ready pool says so
      When an operator looks at a pool of the list
      Then the pool shows
        | fact  | value |
        | live  | yes   |
        | ready | yes   |

    Scenario: An idle pool shows its slots and its room
      Given pool "home" runs 3 tasks at a time
      When an operator looks at pool "home"
      Then the pool shows
        | fact             | value          |
        | model_ref        | file:home.gguf |
        | engine_version   | mock-1         |
        | slots_total      | 3              |
        | slots_busy       | 0              |
        | queue.capacity   | 64             |
        | replica.ctx_max  | 4096           |

    Scenario: A busy pool shows what runs and what waits
      Given pool "home" runs 1 task at a time and queues 8
      And "home" is busy
      And interactive tasks "A" and "B" arrive
      And a batch task "C" arrives
      When an operator looks at pool "home"
      Then the pool shows
        | fact              | value |
        | slots_busy        | 1     |
        | queue.interactive | 2     |
        | queue.batch       | 1     |

    Scenario: A pool whose engine went down says what happened
      Given the engine of "home" goes down
      When an operator looks at pool "home"
      Then the pool shows
        | fact               | value                           |
        | live               | no                              |
        | ready              | no                              |
        | slots_total        | 0                               |
        | last_error.code    | POOL_UNAVAILABLE                |
        | last_error.message | lost: nothing accepts connections |

    Scenario: A loading pool is live and not ready
      Given the engine of "home" is still loading
      When an operator looks at pool "home"
      Then the pool shows
        | fact          | value |
        | live          | yes   |
        | ready         | no    |

    Scenario: A pool learns its speed from its tasks
      Given the engine of "home" takes 125 ms for a token
      And a task arrives
      When 3 seconds pass
      Then pool "home" shows
        | fact                         | value |
        | metrics.observations         | 1     |
        | metrics.service_ms_per_unit  | 125.0 |
        | metrics.tokens_per_s         | 8.0   |

    Scenario: A slot that is not known to be free is shown apart
      Given the engine of "home" ignores the abort
      And the engine of "home" holds its tokens back
      And a task arrives
      And somebody cancels it
      When 11 seconds pass
      Then pool "home" shows
        | fact                      | value |
        | replica.slots_quarantined | 1     |

  @OD-20
  Rule: An engine that comes back is used again

    Scenario: A pool whose engine came back is ready by itself
      Given the engine of "home" goes down
      And the engine of "home" comes back
      When a task arrives
      Then it ends with length after 20 tokens

    Scenario: Tasks that waited meanwhile run then
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task "waiting" arrives
      And the engine of "home" goes down
      And the engine of "home" is let go
      When the engine of "home" comes back
      Then "waiting" ends with length after 20 tokens

  @OD-11
  Rule: Pools can be listed

    @portable
    Scenario: The list has the pool of the model
      When an operator looks at the pools
      Then the list has the pool of the model

    Scenario: Pools are listed by name
      Given pool "rack" runs 1 task at a time
      And pool "attic" runs 1 task at a time
      When an operator looks at the pools
      Then the pools are "attic" and "rack"

    Scenario: Pages show every pool once
      Given pool "c" runs 1 task at a time
      And pool "a" runs 1 task at a time
      And pool "b" runs 1 task at a time
      When an operator looks at the pools
      Then pages of 2 show the pools "a", "b" and "c", page by page
