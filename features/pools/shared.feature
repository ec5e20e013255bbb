Feature: Real models that take turns in memory
  Three agents, two real models on real llama-servers, and room for one of them. The run prints how
  often the models were swapped and how long anybody waited.

  @OD-2
  Rule: Everybody is served, and nobody waits for ever

    Scenario: Three agents and two models
      Given 3 agents that want two real models, which do not fit together, 6 times each
      When they have had all their answers
      Then every task of theirs ended well, on the model it asked for
      And the two were never in memory together
      And nobody waited longer than the documented bound
      And the swaps are counted and shown
