Feature: Draining a pool
  An operator takes a pool out of service without hurting anybody: what runs may finish, what waits
  moves or waits on, and a resume brings everything back.

  @ORCH-2102
  Rule: Nothing new starts, and what runs may finish

    Scenario: A drained pool is shown as such
      When an operator drains pool "home"
      Then the answer is 202
      And pool "home" shows
        | fact                       | value          |
        | draining                   | yes            |
        | ready                      | no             |
        | operation.kind             | drain          |
        | operation.state            | succeeded      |
        | operation.from_model_ref   | file:home.gguf |
        | operation.generation       | 1              |

    Scenario: Running tasks may finish
      Given pool "home" runs 1 task at a time
      And "home" is busy
      When an operator drains pool "home"
      Then pool "home" shows
        | fact            | value    |
        | operation.state | draining |
        | slots_busy      | 1        |

    Scenario: When they have, the pool is drained
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And an operator drains pool "home"
      When the engine of "home" is let go
      Then "busy 1" ends with length after 20 tokens
      And pool "home" shows
        | fact            | value     |
        | operation.state | succeeded |
        | slots_busy      | 0         |

    Scenario: What waits does not start
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And a task "waiting" arrives
      And an operator drains pool "home"
      When the engine of "home" is let go
      Then "waiting" waits for a resume
      And nobody can say when "waiting" starts

    Scenario: What does not finish by the deadline ends, and is worth retrying
      Given pool "home" runs 1 task at a time
      And "home" is busy
      When an operator drains pool "home"
      And 61 seconds pass
      Then "busy 1" fails as POOL_UNAVAILABLE after 0 tokens, worth retrying
      And pool "home" shows
        | fact            | value     |
        | operation.state | succeeded |
      And the engine of "home" was told to stop 1 task

    Scenario: A waiting task's own deadline goes on
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And a task "waiting" arrives, due in 30 seconds
      And an operator drains pool "home"
      When 31 seconds pass
      Then "waiting" fails as DEADLINE_UNMET

    Scenario: A drained pool takes no task
      When an operator drains pool "home"
      And a task arrives
      Then it is refused as POOL_UNREADY
      And it is worth retrying

    Scenario: As long as it drains, it tells when to come back
      Given pool "home" runs 1 task at a time
      And "home" is busy
      When an operator drains pool "home"
      And 20 seconds pass
      And a task arrives
      Then it is refused as POOL_UNREADY
      And it may be retried after 40 seconds

    Scenario: A pin on a draining pool is refused even if another one is open
      Given pools "a" and "b" serve model "shared"
      When an operator drains pool "a"
      And a task arrives, of model "shared", pinned to "a"
      Then it is refused as POOL_UNREADY
      But a task "free" arrives, of model "shared"
      And "free" is in pool "b"

    Scenario: Drains are counted
      When an operator drains pool "home"
      And Prometheus scrapes
      Then the figures are
        | series                              | labels                                      | value |
        | drain_events_total                  | pool_id=home, reason=operator               | 1     |
        | orchestratord_pool_operations_total | pool_id=home, kind=drain, outcome=succeeded | 1     |
        | pool_ready                          | pool_id=home                                | 0     |

  @ORCH-3031
  Rule: Queued tasks move in their order, unless they are pinned

    Background:
      Given pools "a" and "b" serve model "shared"
      And the engine of "a" holds its tokens back
      And the engine of "b" holds its tokens back
      And tasks "one" and "two" of model "a" run
      And tasks "three" and "four" of model "b" run

    Scenario: A task that moves overtakes nobody, and nobody overtakes it
      Given a task "first" arrives, of model "shared", pinned to "b"
      And a task "second" arrives, of model "shared", preferring "a"
      And a task "third" arrives, of model "shared", pinned to "b"
      When an operator drains pool "a"
      Then "second" is in pool "b"
      And "second" is at position 1
      And "third" is at position 2

    Scenario: A pinned task waits
      Given a task "pinned" arrives, of model "shared", pinned to "a"
      When an operator drains pool "a"
      Then "pinned" is in pool "a"
      And "pinned" waits for a resume

    Scenario: So does a task that only this pool can take
      Given a task "own" arrives, of model "a"
      When an operator drains pool "a"
      Then "own" is in pool "a"
      And "own" waits for a resume

    Scenario: A task that moved runs where it is now
      Given a task "mover" arrives, of model "shared", preferring "a"
      And an operator drains pool "a"
      When the engine of "b" is let go
      Then "mover" ends with length after 20 tokens
      And "mover" is in pool "b"

  @ORCH-2102 @OD-11
  Rule: Resuming brings everything back

    Scenario: Waiting tasks run after a resume
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And a task "waiting" arrives
      And an operator drains pool "home"
      And the engine of "home" is let go
      When an operator resumes pool "home"
      Then "waiting" ends with length after 20 tokens

    Scenario: A pool that was resumed is shown as such
      Given an operator drains pool "home"
      When an operator resumes pool "home"
      Then the answer is 202
      And pool "home" shows
        | fact            | value     |
        | draining        | no        |
        | ready           | yes       |
        | operation.kind  | resume    |
        | operation.state | succeeded |

    Scenario: A resume ends a drain that still runs
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And an operator drains pool "home"
      And an operator resumes pool "home"
      And 61 seconds pass
      When the engine of "home" is let go
      Then "busy 1" ends with length after 20 tokens

    Scenario: Resuming twice is the same operation
      Given an operator drains pool "home"
      When an operator resumes pool "home"
      And an operator resumes pool "home" again
      Then both were the same operation

  @ORCH-3040
  Rule: One operation at a time

    Background:
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And an operator drains pool "home"

    Scenario: An equal drain joins the running one
      When an operator drains pool "home" again
      Then both were the same operation

    Scenario: Another drain is a conflict that names the running one
      When an operator drains pool "home" within 5 seconds
      Then it is refused as CONFLICT
      And it names the running operation of "home"

    Scenario: A pool that is drained stays so
      Given the engine of "home" is let go
      When an operator drains pool "home" within 5 seconds
      Then both were the same operation

  @ORCH-2102 @OD-16 @OD-17
  Rule: What was answered with 202 is durable

    Background:
      Given a daemon that keeps its journal on disk

    Scenario: A drain that cannot be journaled did not happen
      Given a task arrives
      And the disk of the journal is full
      When an operator drains pool "home"
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
      And pool "home" shows
        | fact     | value |
        | draining | no    |

    Scenario: Nor did a resume
      Given an operator drains pool "home"
      And the disk of the journal is full
      When an operator resumes pool "home"
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
      And pool "home" shows
        | fact     | value |
        | draining | yes   |

    Scenario: A drained pool is drained after a restart
      Given an operator drains pool "home"
      When the daemon restarts
      Then pool "home" shows
        | fact            | value     |
        | draining        | yes       |
        | operation.kind  | drain     |
        | operation.state | succeeded |

    Scenario: Its tasks wait on after a restart, until it is resumed
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And a task "waiting" arrives
      And an operator drains pool "home"
      And the daemon restarts
      When an operator resumes pool "home"
      Then "waiting" ends with length after 20 tokens
