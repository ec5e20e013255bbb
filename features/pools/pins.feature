Feature: Pins
  A seed means the same text again only on the same engine, with the same model and the same
  sampling. A pool that was promised these takes no replica that brings others.

  @ORCH-3050
  Rule: A replica that differs from its pool's pin is not used, and says in what it differs

    Scenario: Another version of the engine stays out
      Given "home" is pinned to engine_version "mock-2"
      When an operator looks at pool "home"
      Then the pool shows
        | fact               | value                                                                |
        | ready              | no                                                                   |
        | last_error.message | the pool is pinned to engine_version mock-2, this engine is mock-1   |

    Scenario: The version that was asked for is used
      Given "home" is pinned to engine_version "mock-1"
      When a task arrives
      Then it ends with length after 20 tokens

    Scenario: Tasks for a pool without a replica that fits are turned away
      Given "home" is pinned to engine_version "mock-2"
      When a task arrives
      Then it is refused as POOL_UNAVAILABLE

  @ORCH-3050
  Rule: A pool that is pinned to a sampler profile serves no other

    Scenario: Another profile is refused by rule
      Given "home" is pinned to profile "v1"
      And there is a sampler profile "terse"
      When a task arrives, with profile "terse"
      Then it is refused as INVALID_PARAMS by rule unknown_profile
