Feature: Metrics frames
  Between the events of its log a stream tells how things stand right now, so a client can
  show it to a person. That is worth nothing a second later: it has no id and is not kept.

  @OC-CTRL-2024 @SSE-1005
  Rule: They come where something changes, and at a steady pace

    Scenario: One comes after the first token and one before the end
      Given the engine of "home" holds its tokens back
      And a task arrives, of 3 tokens
      And somebody reads it
      When the engine of "home" is let go
      Then somebody sees to the end started token metrics token token metrics end

    Scenario: One comes each second while a task runs
      Given the engine of "home" takes 10000 ms for a token
      And a task arrives, of 1 token
      And somebody reads it
      When 11 seconds pass
      Then somebody sees 11 metrics events to the end

    Scenario: One comes every five seconds while a task waits
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives, due in 17 seconds
      And somebody reads it
      When 20 seconds pass
      Then somebody sees 3 metrics events to the end

    Scenario: A replay has none
      Given a task arrives
      And it has been read to the end
      When somebody reads it
      Then somebody sees 0 metrics events to the end

    Scenario: A failure is not delayed by one
      Given the engine of "home" breaks off after 0 tokens
      And a task arrives
      And 5 seconds pass
      When somebody reads it
      Then somebody sees to the end started error

  @OC-CTRL-2024
  Rule: They tell the state of the moment

    Background:
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And interactive tasks "A" and "B" arrive

    Scenario: A waiting task is told how many wait and when it starts
      Given somebody reads "B"
      When 5 seconds pass
      Then somebody was told that 2 tasks wait
      And somebody was told of a start in 450 ms

    Scenario: The figures follow the queue
      Given somebody reads "B"
      And somebody cancels "A"
      When 5 seconds pass
      Then somebody was told that 1 task waits
      And somebody was told of a start in 150 ms

  @OC-CTRL-2024
  Rule: The chance of being on time is a probability that time wears down

    Scenario: The chance falls as the deadline comes near
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives, due in 20.2 seconds
      And somebody reads it
      When 20 seconds pass
      Then its chances of being on time went from 1.0 to 0.0524
