Feature: Health
  A supervisor asks two things: does it live, and can it take work. The second answer says what
  is missing, in words an operator understands.

  @OD-12
  Rule: A probe learns whether the daemon lives

    @portable @smoke
    Scenario: A daemon that answers lives
      When a probe asks whether it lives
      Then it lives

    Scenario: A daemon whose engines are down lives all the same
      Given the engine of "home" goes down
      When a probe asks whether it lives
      Then it lives

  @OD-12
  Rule: A probe learns whether work can be taken, and if not, why

    @portable @smoke
    Scenario: A daemon with ready pools is ready
      When a probe asks whether it is ready
      Then it is ready

    Scenario: A pool that loads is named, with its reason
      Given the engine of "home" is still loading
      When a probe asks whether it is ready
      Then it is not ready: "pool home is not ready (r0: loading model)"

    Scenario: A pool that was drained is no fault
      Given pool "old" runs 1 task at a time
      And pool "home" runs 1 task at a time
      And an operator enters model "aged" from "file:./old.gguf"
      And an operator retires model "aged"
      When a probe asks whether it is ready
      Then it is ready

    Scenario: A daemon whose only pool was drained cannot take work
      Given an operator drains pool "home"
      When a probe asks whether it is ready
      Then it is not ready: "every pool is drained or being reloaded (home): resume one"

    Scenario: A pool that is down is named beside one that was drained
      Given pool "old" runs 1 task at a time
      And pool "home" runs 1 task at a time
      And an operator drains pool "old"
      And the engine of "home" goes down
      When a probe asks whether it is ready
      Then it is not ready, because of pool "home" alone

    Scenario: A daemon without pools cannot take work
      Given no pool is configured
      When a probe asks whether it is ready
      Then it is not ready: "no pool is configured"

    Scenario: A daemon whose journal broke cannot take work
      Given a task arrives
      And the journal breaks
      When a probe asks whether it is ready
      Then it is not ready: "the journal cannot be written"

    Scenario: A daemon whose engine came back is ready again
      Given the engine of "home" goes down
      And the engine of "home" comes back
      When a probe asks whether it is ready
      Then it is ready
