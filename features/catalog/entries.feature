Feature: Entries of the catalog
  Operators say once what a model is and where it comes from. What they said outlives the
  daemon, and no model is there twice.

  @ORCH-3060
  Rule: A model is entered once

    @portable
    Scenario: A model is kept as it was entered
      When an operator enters model "coder"
      Then the answer leads to the entry
      And the entry shows
        | fact                | value      |
        | state               | Active     |
        | tags                | a b        |
        | verification.status | unverified |
        | signatures          |            |

    @portable
    Scenario: An id can be used once
      Given an operator enters model "coder"
      When an operator enters model "coder" again
      Then it is refused as CONFLICT
      And the message says "already"

    @portable
    Scenario: A source can be entered once, however it is spelt
      Given an operator enters model "coder"
      When an operator enters model "other" from the source of "coder", spelt otherwise
      Then it is refused as CONFLICT
      And it names model "coder"
      And there is no model "other"

    @portable
    Scenario Outline: A source that leads anywhere or nowhere is refused
      When an operator enters model "coder" from "<source>"
      Then it is refused as INVALID_PARAMS by rule trust
      And there is no model "coder"

      Examples:
        | source                             |
        | file:../secret.gguf                |
        | https://models.example/a/../b.gguf |
        | https://me:pass@models.example/a   |
        | hf:repo                            |

    @portable
    Scenario: A source of an unknown kind is refused
      When an operator enters model "coder" from "gopher://models.example/a"
      Then it is refused as INVALID_PARAMS
      And the message says "source_url"

    @portable
    Scenario: A root that is not configured cannot be trusted
      When an operator enters model "coder" trusting the root "nobody"
      Then it is refused as INVALID_PARAMS by rule trust
      And the message says "nobody"

    Scenario: A registry that is not allowed is refused
      Given only "registry.example" may serve models
      When an operator enters model "coder"
      Then it is refused as UNTRUSTED_ARTIFACT by rule trust
      And the message says "models.example"

  @ORCH-3060
  Rule: Entries can be read, listed and removed

    @portable
    Scenario: An entry can be read
      Given an operator enters model "coder"
      When an operator reads model "coder"
      Then the entry shows
        | fact  | value  |
        | state | Active |
        | tags  | a b    |

    @portable
    Scenario: The newest entry comes first
      Given an operator enters model "older"
      And an operator enters model "newer"
      When an operator lists models
      Then the list of models begins with "newer" and "older"

    Scenario: Entries come page by page
      Given an operator enters model "A"
      And an operator enters model "B"
      When an operator enters model "C"
      Then pages of 2 show the models "C", "B" and "A", page by page

    @portable
    Scenario: The list can be asked for one state
      Given an operator enters model "gone"
      And an operator retires model "gone"
      And an operator enters model "here"
      When an operator lists Retired models
      Then the list of models begins with "gone"
      And the list of models is without "here"

    @portable
    Scenario: A removed entry is gone
      Given an operator enters model "coder"
      When an operator deletes model "coder"
      Then it succeeds without content
      And there is no model "coder"

    @portable
    Scenario: A removed entry makes room for another
      Given an operator enters model "coder"
      And an operator deletes model "coder"
      When an operator enters model "coder"
      Then the answer leads to the entry

    Scenario: A model that a pool serves stays in the catalog
      Given an operator enters model "coder" from "file:./home.gguf"
      When an operator deletes model "coder"
      Then it is refused as CONFLICT
      And the message says "home"

    Scenario: A model that a pool is being reloaded to stays in the catalog
      Given models may be loaded
      And the next model of "home" ponders over its probe
      And an operator enters model "next" from "file:next.gguf"
      And an operator reloads pool "home"
      When an operator deletes model "next"
      Then it is refused as CONFLICT

  @ORCH-3060
  Rule: What was answered is on disk

    Background:
      Given a daemon that keeps its journal on disk

    Scenario: Entries survive a restart
      Given an operator enters model "A"
      And an operator enters model "B"
      And an operator retires model "A"
      When the daemon restarts
      Then pages of 1 show the models "B" and "A", page by page
      And model "A" shows
        | fact  | value   |
        | state | Retired |
        | tags  | a b     |

    Scenario: A removed entry stays gone over a restart
      Given an operator enters model "coder"
      And an operator deletes model "coder"
      When the daemon restarts
      Then there is no model "coder"

    Scenario: An entry that cannot be written is not there
      Given an operator enters model "before"
      And the disk of the journal is full
      When an operator enters model "coder"
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
      And there is no model "coder"

    Scenario: An entry whose removal cannot be written stays
      Given an operator enters model "coder"
      And the disk of the journal is full
      When an operator deletes model "coder"
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
      And model "coder" shows
        | fact  | value  |
        | state | Active |

    Scenario: A check that cannot be written does not begin
      Given an operator enters model "coder"
      And the disk of the journal is full
      When an operator has model "coder" checked
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
      And model "coder" shows
        | fact                | value      |
        | verification.status | unverified |

    Scenario: A model whose retirement cannot be written is not retired
      Given an operator enters model "mine" from "file:home.gguf"
      And the disk of the journal is full
      When an operator retires model "mine"
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
      And pool "home" shows
        | fact     | value |
        | draining | no    |
