Feature: Trusting models
  Who runs a model runs what somebody else made. A policy says what that has to prove first,
  and nobody can talk the daemon out of it.

  @ORCH-3097
  Rule: A client can ask for more trust than configured, never for less

    @portable
    Scenario: Strict trust needs a model that the catalog has
      When a task arrives under strict trust
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust
      And it is not worth retrying

    @portable
    Scenario: Permissive trust is what there is without asking
      When a task arrives under permissive trust
      Then it is admitted

    Scenario: A task runs under strict trust on a model that has proven itself
      Given pool "home" serves a model that has proven itself
      When a task arrives under strict trust
      Then it ends with length after 20 tokens

    Scenario Outline: A model that has not proven everything takes no task under strict trust
      Given a folder of models
      And "acme" may sign models
      And pool "home" serves file "qwen.gguf"
      And an operator enters model "qwen" of file "qwen.gguf", <claims>
      And model "qwen" has been checked
      When a task arrives under strict trust
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust

      Examples:
        | claims           |
        | signed by "acme" |
        | with its bill    |

    Scenario: A model that was never checked takes no task under strict trust
      Given an operator enters model "mine" from "file:home.gguf"
      When a task arrives under strict trust
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust
      And the message says "not been verified"

    Scenario: A client cannot loosen a strict daemon
      Given the trust policy is strict
      When a task arrives under permissive trust
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust

    Scenario: A client cannot loosen what an entry asks for
      Given a folder of models
      And pool "home" serves file "qwen.gguf"
      And an operator enters model "qwen" of file "qwen.gguf", that needs a signature
      When a task arrives under permissive trust
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust

    @portable
    Scenario: A trust nobody knows is refused
      When a task arrives under blind trust
      Then it is refused as INVALID_PARAMS
      And the message says "X-Trust-Policy"

    Scenario: A task under strict trust does not wait for a model without it
      Given pool "home" serves a model that has proven itself
      And "home" is busy
      And a task "waiting" arrives under strict trust
      When an operator reloads pool "home" with "file:next.gguf"
      Then "waiting" fails as UNTRUSTED_ARTIFACT

  @ORCH-3037
  Rule: What was found to be false keeps a model out in any mode

    Background:
      Given a folder of models
      And pool "home" serves file "qwen.gguf"
      And an operator enters model "qwen" of file "qwen.gguf", with another digest

    Scenario: A model with another digest than it should have takes no tasks
      Given model "qwen" has been checked
      When a task arrives
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust
      And the message says "its digest is sha256:"

    Scenario: Waiting tasks learn of it too
      Given "home" is busy
      And a task "waiting" arrives
      And model "qwen" has been checked
      When the engine of "home" is let go
      Then "waiting" fails as UNTRUSTED_ARTIFACT

    Scenario: A model that is served is not cleared by removing what is known of it
      Given model "qwen" has been checked
      And an operator deletes model "qwen"
      When a task arrives
      Then it is refused as UNTRUSTED_ARTIFACT

  @ORCH-3037 @ORCH-3080
  Rule: A reload asks the same of its model

    Scenario: A strict daemon reloads to no model that has not proven itself
      Given models may be loaded
      And the trust policy is strict
      When an operator reloads pool "home"
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust

    Scenario: A model found to be false is not loaded
      Given a folder of models
      And an operator enters model "qwen" of file "qwen.gguf", with another digest
      And model "qwen" has been checked
      When an operator reloads pool "home" with "file:qwen.gguf"
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust
