Feature: Changing the model of a pool
  A new model is taken in only after it has proven itself. Nobody notices the change but by the
  answers, and a model that is no good changes nothing at all.

  Background:
    Given models may be loaded

  @ORCH-2103
  Rule: The new model takes over

    Scenario: A reloaded pool serves the new model
      When an operator reloads pool "home"
      Then the answer is 202
      And pool "home" shows
        | fact                     | value          |
        | model_ref                | file:next.gguf |
        | ready                    | yes            |
        | operation.kind           | reload         |
        | operation.state          | succeeded      |
        | operation.from_model_ref | file:home.gguf |
        | operation.to_model_ref   | file:next.gguf |
        | operation.generation     | 2              |

    Scenario: What runs on the old model finishes there
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And an operator reloads pool "home"
      When the engine of "home" is let go
      Then "busy 1" ends with length after 20 tokens
      And pool "home" shows
        | fact            | value     |
        | operation.state | succeeded |
        | slots_busy      | 0         |

    Scenario: What waits does not wait for the old model
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And a task "waiting" arrives, of model "home"
      When an operator reloads pool "home"
      Then "waiting" ends with length after 20 tokens
      And pool "home" shows
        | fact            | value    |
        | operation.state | swapping |

    Scenario: A task for the old model alone is told why it cannot run
      Given pool "home" runs 1 task at a time
      And "home" is busy
      And a task "waiting" arrives, of model "file:home.gguf"
      When an operator reloads pool "home"
      Then "waiting" fails as POOL_UNREADY
      And the message of "waiting" says serves file:next.gguf now

    Scenario: A task too large for the new model is told why it cannot run
      Given the next model of "home" holds 512 tokens
      And pool "home" runs 1 task at a time
      And "home" is busy
      And a task "large" arrives, of model "home", with a context of 2000
      When an operator reloads pool "home"
      Then "large" fails as INVALID_PARAMS
      And the message of "large" says ctx 512 < 2000

    Scenario: A session is cold after a reload
      Given a task arrives, in session "S"
      And it has been read to the end
      When an operator reloads pool "home"
      Then session "S" is cold

    Scenario: A reload ends a drain
      Given an operator drains pool "home"
      When an operator reloads pool "home"
      Then pool "home" shows
        | fact     | value |
        | draining | no    |
        | ready    | yes   |

    Scenario: The name of a pool stands for its model
      Given pool "attic" serves model "spare"
      And pool "home" runs 1 task at a time
      When an operator reloads pool "home" with "spare"
      Then pool "home" shows
        | fact      | value           |
        | model_ref | file:attic.gguf |

  @ORCH-2103 @ORCH-3038
  Rule: Without memory for both, the old model makes room

    Background:
      Given there is no memory for two models of "home"
      And the next model of "home" is as good as the old one
      And pool "home" runs 1 task at a time

    Scenario: It drains first
      Given "home" is busy
      And a task "waiting" arrives, of model "home"
      When an operator reloads pool "home"
      Then "waiting" waits for a reload
      And pool "home" shows
        | fact            | value    |
        | operation.state | draining |
        | draining        | yes      |

    Scenario: Then what waits runs on the new model
      Given "home" is busy
      And a task "waiting" arrives, of model "home"
      And an operator reloads pool "home"
      When the engine of "home" is let go
      Then "waiting" ends with length after 20 tokens
      And pool "home" shows
        | fact            | value          |
        | operation.state | succeeded      |
        | model_ref       | file:next.gguf |
        | draining        | no             |

    Scenario: A task that comes meanwhile is told when to come back
      Given "home" is busy
      And an operator reloads pool "home"
      When a task arrives, of model "home"
      Then it is refused as POOL_UNREADY
      And it may be retried after 300 seconds

  @ORCH-3038
  Rule: A model that is no good changes nothing

    Scenario Outline: <fault>: the old one serves on, and health says why
      Given the next model of "home" <fault>
      And an operator reloads pool "home"
      When 11 minutes pass
      Then pool "home" shows
        | fact                    | value            |
        | model_ref               | file:home.gguf   |
        | ready                   | yes              |
        | operation.state         | rolled_back      |
        | operation.generation    | 1                |
        | operation.error.message | <message>        |
        | last_error.message      | <message>        |

      Examples: models that are no good
        | fault         | message                                                |
        | cannot decode | lost: the connection closed within the reply           |
        | never loads   | the new model did not come up within 600 s             |

    Scenario Outline: <fault>, in place of the old one: that is brought back
      Given there is no memory for two models of "home"
      And the next model of "home" <fault>
      And an operator reloads pool "home"
      When 11 minutes pass
      Then a task "after" arrives, of model "file:home.gguf"
      And "after" ends with length after 20 tokens
      And pool "home" shows
        | fact            | value       |
        | operation.state | rolled_back |

      Examples: models that are no good
        | fault         |
        | cannot decode |
        | never loads   |

    Scenario: A model no policy allows is refused at once
      When an operator reloads pool "home" with "file:/etc/passwd"
      Then it is refused as INVALID_PARAMS by rule trust

    Scenario: So is a scheme that cannot be fetched
      When an operator reloads pool "home" with "https://example.com/model.gguf"
      Then it is refused as INVALID_PARAMS by rule trust

  @ORCH-3040
  Rule: An operator sees how far it is, and nobody comes in between

    Scenario: Loading is shown
      Given the next model of "home" never loads
      When an operator reloads pool "home"
      Then pool "home" shows
        | fact            | value      |
        | operation.state | preloading |
        | ready           | yes        |

    Scenario: Loading is shown in the figures, too
      Given the next model of "home" never loads
      When an operator reloads pool "home"
      And Prometheus scrapes
      Then the figures are
        | series                       | labels                                      | value |
        | orchestratord_pool_operation | pool_id=home, kind=reload, state=preloading | 1     |

    Scenario: Probing is shown
      Given the next model of "home" ponders over its probe
      When an operator reloads pool "home"
      Then pool "home" shows
        | fact            | value   |
        | operation.state | probing |

    Scenario Outline: To <verb> meanwhile is a conflict that names the reload
      Given the next model of "home" never loads
      And an operator reloads pool "home"
      When an operator <verb>
      Then it is refused as CONFLICT
      And it names the running operation of "home"

      Examples: what else one may want
        | verb                                        |
        | drains pool "home"                          |
        | resumes pool "home"                         |
        | reloads pool "home" with "file:other.gguf"  |

    Scenario: An equal reload joins the running one
      Given the next model of "home" never loads
      And an operator reloads pool "home"
      When an operator reloads pool "home" again
      Then both were the same operation

  @ORCH-3039 @OD-16 @OD-17
  Rule: A restart finds one model or the other

    Background:
      Given a daemon that keeps its journal on disk

    Scenario: The new model outlives the daemon
      Given an operator reloads pool "home"
      When the daemon restarts
      Then pool "home" shows
        | fact                 | value          |
        | model_ref            | file:next.gguf |
        | operation.state      | succeeded      |
        | operation.generation | 2              |

    Scenario: A reload that was cut short has not happened
      Given the next model of "home" never loads
      And an operator reloads pool "home"
      When the daemon restarts
      Then pool "home" shows
        | fact                 | value          |
        | model_ref            | file:home.gguf |
        | ready                | yes            |
        | operation.state      | rolled_back    |
        | operation.generation | 1              |

    Scenario: A reload that cannot be journaled does not begin
      Given a task arrives
      And the disk of the journal is full
      When an operator reloads pool "home"
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
