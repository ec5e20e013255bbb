Feature: Changing a real model under load
  Four clients stream from a real llama-server and queue for it. The model is changed under their
  feet; the run prints how long all of them together got no token.

  @HME-031 @ORCH-2103
  Rule: Nobody loses anything

    Scenario: Beside the old model nobody notices
      Given 4 clients stream from a real model, and there is memory for another
      When the model is changed for the "second" one
      Then the reload succeeded
      And the answers are those of another model
      And no task was lost, and none failed
      And nobody was turned away
      And it took less than 10 seconds

    Scenario: Instead of the old model those who wait, wait a little longer
      Given 4 clients stream from a real model, and there is no memory for another
      When the model is changed for the "second" one
      Then the reload succeeded
      And the answers are those of another model
      And no task was lost, and none failed
      And who came meanwhile was asked to come back, and for nothing else
      And it took less than 10 seconds

  @ORCH-3038
  Rule: A broken model changes nothing

    Scenario: Beside the old model nobody notices that it was tried
      Given 4 clients stream from a real model, and there is memory for another
      When the model is changed for the "broken" one
      Then the reload rolled_back
      And no task was lost, and none failed
      And nobody was turned away
      And the operation says why, with the engine's last words

    Scenario: Instead of the old model, that one is brought back
      Given 4 clients stream from a real model, and there is no memory for another
      When the model is changed for the "broken" one
      Then the reload rolled_back
      And no task was lost, and none failed
      And who came meanwhile was asked to come back, and for nothing else
      And the operation says why, with the engine's last words
