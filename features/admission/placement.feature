Feature: Placement
  Where a task runs follows from what it asks and how the pools stand, always the same way,
  and the task's status tells how it was decided.

  @OC-CORE-1011 @ORCH-3902
  Rule: Of the pools that fit, the best one is chosen

    Background:
      Given pools "desk" and "rack" serve model "coder"

    Scenario: The less loaded pool is chosen
      Given "desk" is busy
      When a task arrives, of model "coder"
      Then it is in pool "rack"

    Scenario: Between equals the name decides, and the status says so
      When a task arrives, of model "coder"
      Then it is in pool "desk"
      And its placement shows
        | fact         | value |
        | considered   | 2     |
        | tie_breakers | id    |
        | pinned       | false |

    Scenario: With a hint of the length the earlier end is chosen
      Given "desk" is busy
      When a task arrives, of model "coder", that expects 5 tokens
      Then it is in pool "rack"
      And its placement shows
        | fact         | value         |
        | tie_breakers | predicted_end |

  @OC-CORE-1011 @OC-CORE-1018
  Rule: What cannot serve is ruled out

    Scenario: A pool whose slots are too small is ruled out
      Given pools "desk" and "rack" serve model "coder"
      And a slot of "desk" holds 128 tokens
      When a task arrives, of model "coder"
      Then it is in pool "rack"
      And its placement shows
        | fact    | value               |
        | filters | desk: ctx 128 < 256 |

    Scenario: A device mask is compared exactly
      Given pools "desk" and "rack" serve model "coder"
      And pool "desk" is on device "gpu0,gpu1"
      And pool "rack" is on device "gpu1"
      When a task arrives, of model "coder", on device "gpu1"
      Then it is in pool "rack"

    Scenario: A pool that is down is passed over
      Given pools "desk" and "rack" serve model "coder"
      And the engine of "desk" goes down
      When a task arrives, of model "coder"
      Then it is in pool "rack"
      And its placement shows
        | fact    | value      |
        | filters | desk: down |

  @OC-CORE-1012
  Rule: A model no pool serves is refused for good

    @portable
    Scenario: An unknown model is refused, and trying again is no use
      When a task arrives, of model "hf:nobody/nothing.gguf"
      Then it is refused as POOL_UNREADY
      And it is not worth retrying

    Scenario: The refusal lists the pools there are
      Given pool "desk" runs 1 task at a time
      And pool "rack" runs 1 task at a time
      When a task arrives, of model "other"
      Then it is refused as POOL_UNREADY
      And the refusal names available as ['desk', 'rack']

    Scenario: The right model on the wrong engine is an unknown one
      Given pool "home" is on engine vllm
      When a task arrives, on engine llamacpp
      Then it is refused as POOL_UNREADY
      And it is not worth retrying

  @OC-CORE-1013
  Rule: A model that is not there just now is refused for now

    Scenario: A pool that is loading will be ready later
      Given the engine of "home" is still loading
      When a task arrives
      Then it is refused as POOL_UNREADY
      And it may be retried after 1 second

    Scenario: A pool whose engine is down is unavailable
      Given the engine of "home" goes down
      When a task arrives
      Then it is refused as POOL_UNAVAILABLE
      And it is worth retrying

    Scenario: A pool that has loaded takes tasks
      Given the engine of "home" is still loading
      And the engine of "home" has loaded
      When a task arrives
      Then it ends with length after 20 tokens

  @OC-CORE-1015
  Rule: A pin never falls back

    Background:
      Given pools "desk" and "rack" serve model "coder"

    Scenario: A pinned task runs in its pool though another one is free
      Given "rack" is busy
      When a task arrives, of model "coder", pinned to "rack"
      Then it is in pool "rack"
      And its placement shows
        | fact   | value |
        | pinned | true  |

    Scenario: A pinned task does not leave a pool that is down
      Given the engine of "rack" goes down
      When a task arrives, of model "coder", pinned to "rack"
      Then it is refused as POOL_UNREADY
      And it is worth retrying

    Scenario: A pin to a pool of another model can never be met
      When a task arrives, of model "other", pinned to "rack"
      Then it is refused as INVALID_PARAMS by rule pin_infeasible

  @OC-CORE-1016
  Rule: A preference falls back if it may, and an avoid list rules out

    Background:
      Given pools "desk" and "rack" serve model "coder"

    Scenario: A preferred pool is taken though it is busier
      Given "rack" is busy
      When a task arrives, of model "coder", preferring "rack"
      Then it is in pool "rack"

    Scenario: A preferred pool that is down is given up, and the status says so
      Given the engine of "rack" goes down
      When a task arrives, of model "coder", preferring "rack"
      Then it is in pool "desk"
      And its placement shows
        | fact          | value |
        | fallback_used | true  |

    Scenario: A preference without a way out is refused for now
      Given the engine of "rack" goes down
      When a task arrives, of model "coder", on nothing but "rack"
      Then it is refused as POOL_UNREADY
      And it is worth retrying

    Scenario: An avoided pool is not used
      When a task arrives, of model "coder", avoiding "desk"
      Then it is in pool "rack"

    Scenario: Avoiding the only pool leaves none
      When a task arrives, of model "desk", avoiding "desk"
      Then it is refused as INVALID_PARAMS by rule avoid_leaves_none
