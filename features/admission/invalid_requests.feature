Feature: Invalid requests
  A request that cannot be served is refused before it takes a place, and the refusal says
  what to change: the field, the rule, the name that was probably meant.

  @OD-14
  Rule: A request that does not fit the schema is refused with the place of the fault

    @portable @smoke
    Scenario: A misspelt field gets the name that was probably meant
      When a task arrives, with promt "Hello"
      Then it is refused as INVALID_PARAMS
      And the message says "unknown field 'promt'"
      And the message says "Did you mean 'prompt'?"

    @portable
    Scenario: A missing field is named
      When a task arrives, without a session_id
      Then it is refused as INVALID_PARAMS
      And the message says "session_id"

    @portable
    Scenario: A word outside a closed list is refused
      When a task arrives, with priority "urgent"
      Then it is refused as INVALID_PARAMS
      And the message says "priority"

    @portable
    Scenario: A task needs room for at least one token
      When a task arrives, of 0 tokens
      Then it is refused as INVALID_PARAMS
      And the message says "max_tokens"

    @portable
    Scenario: A task id is a UUID
      When a task arrives, with task_id "number 1"
      Then it is refused as INVALID_PARAMS

    @portable
    Scenario: No operation takes an empty object for a body
      When every operation with a body gets an empty object
      Then each is refused as INVALID_PARAMS

  @OD-14
  Rule: A body that cannot be read is refused as what it is

    @portable
    Scenario Outline: A body <kind> is refused
      When a task arrives with a body <kind>
      Then it is refused as <code>

      Examples: what a body may not be
        | kind                   | code                   |
        | that is not JSON       | INVALID_PARAMS         |
        | nested 100 levels deep | INVALID_PARAMS         |
        | that is a form         | UNSUPPORTED_MEDIA_TYPE |
        | in Latin-1             | UNSUPPORTED_MEDIA_TYPE |

    @portable
    Scenario: Broken JSON is told apart from a wrong field
      When a task arrives with a body that is not JSON
      Then it is refused as INVALID_PARAMS by rule body_syntax

    @portable
    Scenario: Every operation with a body wants it as JSON
      When every operation with a body gets it as text/plain
      Then each is refused as UNSUPPORTED_MEDIA_TYPE

    Scenario: No operation takes more bytes than the limit
      Given bodies may have 2048 bytes at most
      When every operation with a body gets 2049 bytes
      Then each is refused as PAYLOAD_TOO_LARGE

  @OC-CTRL-2010
  Rule: A request that fits the schema and cannot be served names its rule

    @portable
    Scenario Outline: A task <wish> breaks rule <rule>
      When a task arrives, <wish>
      Then it is refused as INVALID_PARAMS by rule <rule>

      Examples: what any daemon can tell
        | wish                                  | rule                 |
        | without a prompt                      | inputs_for_workload  |
        | with inputs                           | inputs_for_workload  |
        | pinned to "no-such-pool"              | pin_unknown_pool     |
        | pinned to no pool                     | pin_unknown_pool     |
        | with profile "nobody's"               | unknown_profile      |
        | bound to a grammar, bound to a schema | unsupported_sampling |

    Scenario: An embedding takes no prompt
      When an embedding task arrives, with prompt "Hello"
      Then it is refused as INVALID_PARAMS by rule inputs_for_workload

    Scenario: A rerank needs a query
      When a rerank task arrives, without a prompt
      Then it is refused as INVALID_PARAMS by rule inputs_for_workload

    Scenario: A conversation needs a model with a chat template
      Given the engine of "home" has no chat template
      When a task arrives, as a conversation
      Then it is refused as INVALID_PARAMS by rule no_chat_template

    Scenario: A workload the engine does not serve is refused
      Given the engine of "home" serves completions only
      When an embedding task arrives
      Then it is refused as INVALID_PARAMS by rule unsupported_workload

    Scenario: Strict determinism needs an engine that can repeat itself
      Given the engine of "home" never repeats itself
      When a task arrives, strictly deterministic
      Then it is refused as INVALID_PARAMS by rule unsupported_determinism

    Scenario: An embedding has no use for sampling knobs
      When an embedding task arrives, that stops at "Hello"
      Then it is refused as INVALID_PARAMS by rule unsupported_sampling
      And the refusal names field as sampling.stop

    Scenario: Query and document have to fit together
      Given a slot of "home" holds 64 tokens
      When a rerank task arrives, of 65 words, with a context of 64
      Then it is refused as INVALID_PARAMS by rule prompt_exceeds_ctx
      And the refusal names field as inputs[0]

    Scenario: A sampling knob the engine does not know is refused by name
      When a task arrives, bound to a grammar
      Then it is refused as INVALID_PARAMS by rule unsupported_sampling
      And the refusal names field as sampling.grammar
