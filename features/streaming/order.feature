Feature: Streams
  A stream tells a task's whole story in one order every client can rely on: it has started,
  what it says, and that it is over. Whoever reads it gets the same story.

  @OC-CTRL-2020 @OC-CTRL-2021 @OC-CTRL-2025
  Rule: A stream begins, speaks and ends, and is numbered without gaps

    @portable @smoke
    Scenario: The stream of a task is complete and in order
      When a task arrives
      Then it ends well
      And the text of it is all its tokens in a row

    Scenario: A finished task tells its log and nothing else
      Given the engine of "home" says
        | token |
        | One   |
        | , two |
        | .     |
      And a task arrives
      When it has been read to the end
      Then the stream of it reads
        """
        1 started position 0, in 0 ms
        2 token 0 "One"
        3 token 1 ", two"
        4 token 2 "."
        5 end stop, 3 tokens in 0 ms
        """

    Scenario: The end tells how long the engine spoke and how many tokens it counted
      Given the engine of "home" takes 250 ms for a token
      And a task arrives, of 5 tokens
      When 2 seconds pass
      Then its status tells
        | state | tokens_in | tokens_out | finish_reason | last_event_id |
        | ended | 4         | 5          | length        | 7             |

    Scenario: A stop string ends a task early
      When a task arrives, that stops at "if"
      Then it ends with stop after 2 tokens

    Scenario: Several tokens in one event count as several
      Given the engine of "home" packs 3 tokens into one event
      When a task arrives
      Then the engine's tokens are 1, in 1 token events

  @OC-CTRL-2022
  Rule: The promise of the admission comes first, and at once

    @portable
    Scenario: The first event repeats what the admission said
      When a task arrives
      Then the started event of it repeats its admission

    Scenario: A task that waits has already started to tell
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives
      When somebody reads it
      Then somebody has read
        """
        1 started position 0, in 150 ms
        """

  @SSE-1004 @ORCH-2002
  Rule: An event is seen as soon as it happened

    Scenario: A token is seen before the next one exists
      Given the engine of "home" holds its tokens back
      And a task arrives
      And somebody reads it
      When the engine of "home" gives 1 token
      Then somebody has seen 1 token event
      And it is running

  @OC-CTRL-2023
  Rule: Embeddings and rankings come as results

    Scenario: An embedding gives one vector for each input
      When an embedding task arrives
      Then it gives 2 embedding results
      And it ends with stop after 0 tokens

    Scenario: A rerank gives one score for each document, best first
      When a rerank task arrives
      Then it gives 3 ranking results
      And the results come best first
