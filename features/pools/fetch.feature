Feature: Models from elsewhere
  A model may be named by where it is to be had. It is fetched if the operator allows that, which by
  default nobody does, and nothing is served that is not what it ought to be. The engine is a real
  llama-server, and the server of models a real one on loopback.

  @ORCH-3072 @ORCH-2103
  Rule: A reference is as good as a file

    Scenario: A pool is reloaded with a model from elsewhere
      Given a server nearby that models may be fetched from
      And a pool with a model of this machine
      When the pool is reloaded with "second" from there
      Then the pool comes to serve "second" from there, under its digest

    Scenario: A pool starts with a model from elsewhere
      Given a server nearby that models may be fetched from
      When a pool starts whose model is on that server
      Then the pool comes up with "first" from there

    Scenario: An operator sees how far it is
      Given a server nearby that models may be fetched from
      And a pool with a model of this machine
      And the server sends only half of "second" for now
      When the pool is reloaded with "second" from there
      Then half of it is shown to be there

    Scenario: A server may take its time
      Given a server nearby that models may be fetched from
      And a pool with a model of this machine
      And the server sends only half of "second" for now
      And the pool is reloaded with "second" from there
      When the server sends the rest
      Then the pool comes to serve "second" from there, under its digest

  @ORCH-3090 @ORCH-3091
  Rule: Nothing is fetched that nobody allowed

    Scenario: By default nothing is
      Given a server nearby, and nothing may be fetched
      And a pool with a model of this machine
      When the pool is reloaded with "second" from there
      Then the reload is refused by rule trust, and the message names "models.fetch.schemes"
      And the server was never asked

    Scenario: From hosts that are not listed nothing is
      Given a server nearby, and models may be fetched from others only
      And a pool with a model of this machine
      When the pool is reloaded with "second" from there
      Then the reload is refused by rule trust, and the message names "models.fetch.hosts"
      And the server was never asked

    Scenario: A private address takes more than to be listed
      Given a server nearby that is allowed like one far away
      And a pool with a model of this machine
      When the pool is reloaded with "second" from there
      Then the reload is refused by rule trust, and the message names "models.fetch.allow_private"
      And the server was never asked

  @OD-41
  Rule: The cache has a bound

    Scenario: A model that nothing uses any more makes room
      Given a server nearby that models may be fetched from
      And the cache holds no more than one of its models
      And a pool starts whose model is on that server
      And the pool comes up with "first" from there
      When the pool is reloaded with "second" from there
      Then the pool comes to serve "second" from there, under its digest
      And of its models "second" alone stays in the cache

  @ORCH-3038
  Rule: What cannot be had, or is no model, changes nothing

    Scenario Outline: <what> is no model
      Given a server nearby that models may be fetched from
      And a pool with a model of this machine
      When the pool is reloaded with "<what>" from there
      Then the reload failed as <code>, because <words>
      And the pool serves its old model on

      Examples: things that are no models
        | what    | code               | words                |
        | nothing | NOT_FOUND          | There is nothing at  |
        | page    | UNTRUSTED_ARTIFACT | is not a GGUF file   |
