Feature: Sending a task twice
  A client whose connection broke cannot know whether its task was taken. It sends it again,
  and whatever had happened, the task runs once.

  @ORCH-3006
  Rule: An equal request is answered as before and runs once

    @portable @smoke
    Scenario: The same request gives the first answer again
      Given a task arrives
      When it is sent again
      Then it is the first answer again

    Scenario: However often it is sent, a task runs once
      Given a task arrives
      And it is sent again
      When it is sent again
      Then it is the first answer again
      And 1 task reached the engine of "home"

    Scenario: The repeated answer is the first one, though the queue has moved on
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And interactive tasks "A" and "B" arrive
      And somebody cancels "A"
      When "B" is sent again
      Then "B" is admitted at position 1, to start in 450 ms

    Scenario: The order of the fields does not matter
      Given a task arrives
      When it is sent again with its fields in another order
      Then it is the first answer again

    Scenario: A finished task is not run again
      Given a task arrives
      And it has been read to the end
      When it is sent again
      Then it is the first answer again
      And 1 task reached the engine of "home"

    @portable
    Scenario: Another body under the same id is refused
      Given a task arrives
      When it is sent again, of 19 tokens
      Then it is refused as CONFLICT
      And it is not worth retrying

  @ORCH-3006
  Rule: A refused task is not remembered

    @portable
    Scenario: A task that was refused can be corrected and sent under its id
      Given a task arrives, with a context of 2000000000
      When it is sent again, with a context of 256
      Then it is a first answer
