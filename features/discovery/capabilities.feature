Feature: Capabilities
  A client that meets a daemon for the first time learns which engines it can use, how much
  they take and which version of the contract is spoken, from the pools as they are now.

  @OC-CTRL-2061
  Rule: Capabilities describe what is there

    @portable @smoke
    Scenario: The version is that of the contracts
      When somebody asks what it can do
      Then it speaks the version of the contracts

    @portable
    Scenario: The engine of the model is there
      When somebody asks what it can do
      Then it has an engine for the model

    Scenario: Engines are described from their live pools
      Given pool "home" runs 3 tasks at a time
      And a slot of "home" holds 2048 tokens
      When somebody asks what it can do
      Then its engines are
        | engine   | driver | engine_version | ctx_max | concurrency | determinism | sampler_profile_version |
        | llamacpp | mock   | mock-1         | 2048    | 3           | exact       | v1                      |

    Scenario: Pools of one kind are counted together
      Given pool "desk" runs 1 task at a time
      And pool "rack" runs 2 tasks at a time
      When somebody asks what it can do
      Then its engines are
        | engine   | concurrency | determinism |
        | llamacpp | 3           | exact       |

    Scenario: An engine that is down offers nothing
      Given the engine of "home" goes down
      When somebody asks what it can do
      Then its engines are
        | engine   | concurrency | supported_workloads |
        | llamacpp | 0           | []                  |

    Scenario: The limits are those of the configuration
      Given bodies may have 2048 bytes at most
      And a session has 2 turns
      When somebody asks what it can do
      Then its limits are
        | limit                      | value      |
        | max_body_bytes             | 2048       |
        | session_turns_max          | 2          |
        | queue_capacity_default     | 64         |
        | sse_keepalive_ms           | 15000      |
        | task_retention_ms          | 3600000    |
        | transcript_retention_ms    | 604800000  |
        | transcript_retention_bytes | 2147483648 |
        | max_artifact_bytes         | 67108864   |
        | max_uri_bytes              | 8192       |
        | max_header_bytes           | 16384      |
        | max_deadline_ms            | 86400000   |

    Scenario: What one caller may submit is told
      Given one caller may submit 1 task a second and 3 at once
      When somebody asks what it can do
      Then its engines are
        | engine   | rate_limits                            |
        | llamacpp | {'tasks_per_s': 1.0, 'tasks_burst': 3} |

    Scenario: Without a limit nothing is told of one
      When somebody asks what it can do
      Then no engine has rate limits
