Feature: Accepting work
  A client that hands in a task learns at once where it stands and when it will start,
  and can rely on that: what was accepted is known, and what cannot be done is said now.

  @OC-CTRL-2010
  Rule: An admission names the place, the start and the task

    @portable @smoke
    Scenario: An accepted task can be found where the answer says
      When a task arrives
      Then it is admitted
      And the answer leads to the task

    Scenario: An idle pool starts a task at once
      When a task arrives
      Then it is admitted at position 0, to start in 0 ms
      And the next one should wait 0 ms

    Scenario: A conversation is accepted in place of a prompt
      When a task arrives, as a conversation
      Then it is admitted

    Scenario: A task may name the pool's model by an alias
      Given pool "home" serves model "coder"
      When a task arrives, of model "coder"
      Then it ends with length after 20 tokens

  @ORCH-3016
  Rule: What does not fit is refused, never shortened

    @portable
    Scenario: Prompt and output that need more than ctx are refused
      When a task arrives, of 300 words, with a context of 256
      Then it is refused as INVALID_PARAMS by rule prompt_exceeds_ctx
      And it is not worth retrying

    Scenario: A prompt that just fits is taken whole
      When a task arrives, of 43 words, of 20 tokens, with a context of 64
      Then it ends with length after 20 tokens
      And it has tokens_in 44

    Scenario: One word more than fits is one too many
      When a task arrives, of 44 words, of 20 tokens, with a context of 64
      Then it is refused as INVALID_PARAMS by rule prompt_exceeds_ctx

    @portable
    Scenario: A context the model does not have is refused
      When a task arrives, with a context of 2000000000
      Then it is refused as INVALID_PARAMS by rule ctx_exceeds_model

    Scenario: A context is measured against one slot of the model
      Given a slot of "home" holds 512 tokens
      When a task arrives, with a context of 513
      Then it is refused as INVALID_PARAMS by rule ctx_exceeds_model
      And the refusal names limit as 512

  @ORCH-3045
  Rule: A task reports the seed and the determinism it ran with

    @portable
    Scenario: A task keeps the seed it came with
      When a task arrives, with seed 4294967294
      Then it has seed 4294967294

    @portable
    Scenario: A seed that engines would cut is refused
      When a task arrives, with seed 4294967295
      Then it is refused as INVALID_PARAMS

    Scenario: A task without a seed draws one and tells it
      When a task arrives, without a seed
      Then it drew a seed of its own

    Scenario: Equal prompts and seeds give equal texts
      Given the task "first" arrives, with seed 11
      When the task "second" arrives, with seed 11
      Then "first" and "second" wrote the same text

    Scenario: Only a slot that nothing shares is exact
      Given pool "home" runs 1 task at a time and queues 4
      When a task arrives, strictly deterministic
      Then it has determinism_class exact
