Feature: Retiring models
  A model goes out of use without anybody being cut off: what runs may finish, and who asks
  anew is told to choose another.

  @ORCH-3062
  Rule: A retired model takes no new tasks

    @portable
    Scenario: A model is retired and brought back
      Given an operator enters model "coder"
      And an operator retires model "coder"
      When an operator brings model "coder" back
      Then the answer is 202
      And the entry shows
        | fact  | value  |
        | state | Active |

    @portable
    Scenario: A retired model shows as retired
      Given an operator enters model "coder"
      When an operator retires model "coder"
      Then the answer is 202
      And the entry shows
        | fact  | value   |
        | state | Retired |

    Scenario Outline: A task for a retired model is refused, whatever it calls the model
      Given an operator enters model "mine" from "file:./home.gguf"
      And an operator retires model "mine"
      When a task arrives, of model "<ref>"
      Then it is refused as MODEL_DEPRECATED
      And it names model "mine"

      Examples:
        | ref            |
        | home           |
        | file:home.gguf |

    Scenario: A task for a retired model is refused by its digest
      Given a folder of models
      And the model of pool "home" has the digest of "qwen.gguf"
      And an operator enters model "qwen" of file "qwen.gguf", with its digest
      And an operator retires model "qwen"
      When a task arrives, of model "home"
      Then it is refused as MODEL_DEPRECATED

    Scenario: A task goes where the same name means another model
      Given pool "home" serves model "chat"
      And pool "spare" serves model "chat"
      And an operator enters model "mine" from "file:home.gguf"
      And an operator retires model "mine"
      When a task arrives, of model "chat"
      Then it is in pool "spare"

    Scenario: A model that is back takes tasks again
      Given an operator enters model "mine" from "file:home.gguf"
      And an operator retires model "mine"
      And an operator brings model "mine" back
      And an operator resumes pool "home"
      When a task arrives, of model "home"
      Then it ends with length after 20 tokens

    Scenario: No pool is reloaded to a retired model
      Given models may be loaded
      And an operator enters model "next" from "file:next.gguf"
      And an operator retires model "next"
      When an operator reloads pool "home"
      Then it is refused as MODEL_DEPRECATED

  @ORCH-3062
  Rule: The pools that serve a retired model are drained

    Background:
      Given pool "home" runs 1 task at a time
      And an operator enters model "mine" from "file:home.gguf"

    Scenario: What runs may finish
      Given "home" is busy
      And an operator retires model "mine"
      When the engine of "home" is let go
      Then "busy 1" ends with length after 20 tokens
      And pool "home" shows
        | fact            | value     |
        | draining        | yes       |
        | operation.kind  | drain     |
        | operation.state | succeeded |

    Scenario: What runs too long is ended
      Given "home" is busy
      And an operator retires model "mine" within 5 seconds
      When 6 seconds pass
      Then "busy 1" fails as POOL_UNAVAILABLE
      And the figures are
        | series             | labels                      | value |
        | drain_events_total | pool_id=home, reason=retired | 1     |

    Scenario: What waits is not lost
      Given "home" is busy
      And a task "waiting" arrives, of model "home"
      When an operator retires model "mine"
      Then "waiting" is queued
      And "waiting" waits for a resume

    Scenario: Retiring twice is the same as once
      Given an operator retires model "mine"
      When an operator retires model "mine" again
      Then the answer is 202
      And the figures are
        | series             | labels       | value |
        | drain_events_total | pool_id=home | 1     |

  @ORCH-3062
  Rule: What is being done to a pool is not disturbed

    Background:
      Given models may be loaded
      And pool "home" runs 1 task at a time

    Scenario: A pool that is being reloaded to another model is left alone
      Given the next model of "home" is as good as the old one
      And an operator enters model "mine" from "file:home.gguf"
      And "home" is busy
      And an operator reloads pool "home"
      And an operator retires model "mine"
      When the engine of "home" is let go
      Then pool "home" shows
        | fact            | value          |
        | model_ref       | file:next.gguf |
        | operation.kind  | reload         |
        | operation.state | succeeded      |
        | draining        | no             |

    Scenario: A pool whose reload fails is drained after it
      Given the next model of "home" never loads
      And an operator enters model "mine" from "file:home.gguf"
      And an operator reloads pool "home"
      And an operator retires model "mine"
      When 11 minutes pass
      Then pool "home" shows
        | fact           | value          |
        | model_ref      | file:home.gguf |
        | operation.kind | drain          |
        | draining       | yes            |

    Scenario: A model that is back before its pool could be drained is not drained
      Given the next model of "home" never loads
      And an operator enters model "mine" from "file:home.gguf"
      And an operator reloads pool "home"
      And an operator retires model "mine"
      And an operator brings model "mine" back
      When 11 minutes pass
      Then pool "home" shows
        | fact           | value  |
        | operation.kind | reload |
        | draining       | no     |

  @ORCH-3062
  Rule: A retirement outlives the daemon

    Scenario: A retired model is retired after a restart
      Given a daemon that keeps its journal on disk
      And an operator enters model "mine" from "file:home.gguf"
      And an operator retires model "mine"
      And the daemon restarts
      When a task arrives, of model "home"
      Then it is refused as MODEL_DEPRECATED
      And pool "home" shows
        | fact     | value |
        | draining | yes   |

    Scenario: A pool that was resumed after the retirement stays so after a restart
      Given a daemon that keeps its journal on disk
      And an operator enters model "mine" from "file:home.gguf"
      And an operator retires model "mine"
      And an operator resumes pool "home"
      When the daemon restarts
      Then pool "home" shows
        | fact     | value |
        | draining | no    |
