Feature: Transcripts
  What a task said and under which circumstances can be looked up later, also when it failed.
  What it was asked is nobody's business: the prompt is in no transcript.

  @OC-CTRL-2067
  Rule: Every task that ends leaves a transcript

    @portable @smoke
    Scenario: The transcript has every event of the stream
      When a task arrives
      Then it ends well
      And the transcript of it tells every event of its stream

    Scenario: A canceled task leaves what it said
      Given the engine of "home" holds its tokens back
      And a task arrives
      And the engine of "home" gives 2 tokens
      When somebody cancels it
      Then the transcript of it has 2 tokens

    Scenario: A failed task leaves what it said
      Given the engine of "home" breaks off after 2 tokens
      When a task arrives
      Then it is failed
      And the transcript of it has 2 tokens

    Scenario: A task that never ran leaves one too
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives
      When somebody cancels it
      Then the transcript of it has 0 tokens

    @portable
    Scenario: It can be found by task and by session
      When a task arrives
      Then it ends well
      And the transcript of it can be found by task and by session

    Scenario: It tells the circumstances
      When a task arrives, with seed 11
      Then the transcript of it says
        | fact              | value          |
        | engine            | llamacpp       |
        | engine_version    | mock-1         |
        | model_ref         | home           |
        | pool_id           | home           |
        | replica_id        | r0             |
        | seed              | 11             |
        | determinism_class | best_effort    |
        | prompt_tokens     | 4              |

  @OC-CTRL-2067 @ORCH-3035
  Rule: It never has the prompt

    @portable
    Scenario: The transcript has the hash of the prompt and not the prompt
      When a task arrives
      Then it ends well
      And the transcript of it has the hash of the prompt and not the prompt

  @OC-CTRL-2067
  Rule: How much is kept is configured

    Scenario: Without text, what happened remains
      Given transcripts are kept as metadata
      When a task arrives
      Then it is ended
      And the transcript of it tells no text

    Scenario: Without transcripts nothing is kept
      Given transcripts are kept as off
      When a task arrives
      Then it is ended
      And it left no transcript

    Scenario: A store that is full for a while loses none
      Given the store of artifacts is full
      And a task arrives
      And it has been read to the end
      When the store of artifacts works again
      Then the transcript of it is in the store
