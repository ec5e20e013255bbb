Feature: Checking models
  A model is somebody else's bytes. Before it is believed it is read, all of it, and held
  against everything that was said of it.

  @ORCH-3061
  Rule: A check runs behind the answer, once at a time

    @portable
    Scenario: A check is begun
      Given an operator enters model "coder"
      When an operator has model "coder" checked
      Then a check has begun

    Scenario: A second call joins the check that runs
      Given a folder of models
      And an operator enters model "qwen" of file "qwen.gguf"
      And reading a model takes long
      And an operator has model "qwen" checked
      When an operator has model "qwen" checked again
      Then a check has begun
      And the model was read 1 time in all

    Scenario: A check that runs is shown as running
      Given a folder of models
      And an operator enters model "qwen" of file "qwen.gguf"
      And reading a model takes long
      When an operator has model "qwen" checked
      Then model "qwen" is being checked

    Scenario: A check that is over can be repeated
      Given a folder of models
      And an operator enters model "qwen" of file "qwen.gguf", with its digest
      And model "qwen" has been checked
      And the bytes of "qwen.gguf" change
      When an operator has model "qwen" checked again
      Then model "qwen" shows
        | fact                | value  |
        | verification.status | failed |

    Scenario: A check that a restart has cut short says so
      Given a daemon that keeps its journal on disk
      And a folder of models
      And an operator enters model "qwen" of file "qwen.gguf"
      And reading a model takes long
      And an operator has model "qwen" checked
      When the daemon restarts
      Then model "qwen" shows
        | fact                | value                                                |
        | verification.status | unverified                                           |
        | verification.reason | The daemon stopped during the check. Start it again. |

    Scenario: A removed model is checked no further
      Given a folder of models
      And an operator enters model "qwen" of file "qwen.gguf"
      And reading a model takes long
      And an operator has model "qwen" checked
      When an operator deletes model "qwen"
      Then it succeeds without content
      And there is no model "qwen"

    Scenario: A model that cannot be had fails its check
      Given a folder of models
      And an operator enters model "qwen" from "file:nowhere.gguf"
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value                                                                 |
        | verification.status | failed                                                                |
        | verification.reason | not_found: There is no file 'nowhere.gguf' under models.roots. |

  @ORCH-3037
  Rule: What was said of the bytes has to be so

    Background:
      Given a folder of models

    Scenario Outline: A model that is as it was said to be passes
      Given an operator enters model "qwen" of file "qwen.gguf", <claim>
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value                                                 |
        | verification.status | passed                                                |
        | verification.reason | there is no signature; there is no bill of materials |

      Examples:
        | claim                              |
        | with its digest                    |
        | with its manifest                  |
        | with its digest, with its manifest |

    Scenario: A model with another digest fails
      Given an operator enters model "qwen" of file "qwen.gguf", with another digest
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value                                                                                                       |
        | verification.status | failed                                                                                                      |
        | verification.reason | digest: its digest is sha256:48db5a66810bdd264cd556f452c54e9567f3a2f893b0eadbecc30c908b3affa4 |

    Scenario: A model with files of another size fails
      Given an operator enters model "qwen" of file "qwen.gguf", with a manifest of another size
      When model "qwen" has been checked
      Then the figures are
        | series                       | labels                                     | value |
        | catalog_verifications_total  | result=failed, reason=manifest, engine=none  | 1     |

  @ORCH-3080
  Rule: Signatures and bills of materials may be missing, but not wrong

    Background:
      Given a folder of models
      And "acme" may sign models

    Scenario: A model with a good signature and its bill lacks nothing
      Given an operator enters model "qwen" of file "qwen.gguf", signed by "acme", with its bill
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value    |
        | verification.status | passed   |
        | verification.reason | None     |
        | signatures          | acme:yes |

    Scenario: A signature by somebody else fails
      Given an operator enters model "qwen" of file "qwen.gguf", signed by "mallory"
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value                                                           |
        | verification.status | failed                                                          |
        | verification.reason | signature: the signature at file:qwen.gguf.sig is by none of acme |
        | signatures          | unknown:no                                                      |

    Scenario: A signature over other bytes fails
      Given an operator enters model "qwen" of file "qwen.gguf", signed by "acme"
      And the bytes of "qwen.gguf" change
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value      |
        | verification.status | failed     |
        | signatures          | unknown:no |

    Scenario: A bill of another model fails
      Given an operator enters model "qwen" of file "qwen.gguf", with a bill of something else
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value                                                           |
        | verification.status | failed                                                          |
        | verification.reason | sbom: the bill of materials lists other files than this model's |

    Scenario: What is missing is a warning
      Given an operator enters model "qwen" of file "qwen.gguf", signed by "acme", with a bill nobody can find
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value                                                                                             |
        | verification.status | passed                                                                                            |
        | verification.reason | the bill of materials cannot be had: There is no file 'nowhere.json' under models.roots. |

    Scenario Outline: What is missing fails in strict mode
      Given the trust policy is strict
      And an operator enters model "qwen" of file "qwen.gguf", <claims>
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value    |
        | verification.status | failed   |
        | verification.reason | <reason> |

      Examples:
        | claims           | reason                                        |
        | with its digest  | signature_missing: there is no signature      |
        | with its bill    | signature_missing: there is no signature      |
        | signed by "acme" | sbom_missing: there is no bill of materials   |

    Scenario: An entry can ask for more than the daemon
      Given an operator enters model "qwen" of file "qwen.gguf", that needs a signature
      When an operator has model "qwen" checked
      Then model "qwen" shows
        | fact                | value                                    |
        | verification.status | failed                                   |
        | verification.reason | signature_missing: there is no signature |

    Scenario: A signature nobody here can check counts as missing
      Given an operator enters model "qwen" of file "qwen.gguf", signed by "acme"
      When model "qwen" has been checked
      Then the figures are
        | series                      | labels                                       | value |
        | catalog_verifications_total | result=passed, reason=sbom_missing, engine=none | 1     |
        | model_state                 | state=Active                                 | 1     |
