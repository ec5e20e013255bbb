@OD-2
Feature: Models that are loaded on demand
  More models than fit into memory: each comes when a task wants it, and goes when another needs its
  room. What works is never cut, and nobody waits for ever.

  Background:
    Given models "red" and "blue" are loaded on demand, and two do not fit

  Rule: A task for a model that is not loaded is taken, and its estimate includes the load

    Scenario: Before the first load the estimate is the configured one
      When a task arrives, of model "red"
      Then it is admitted at position 0, to start in 10000 ms
      And it waits for "load"

    Scenario: The estimate counts down while the model is loading
      Given a task arrives, of model "red"
      When 3 seconds pass
      Then it is to start in 7000 ms

    Scenario: When it is loaded the task runs
      Given a task arrives, of model "red"
      When 5 seconds pass
      Then it ends with length after 20 tokens
      And pool "red" shows
        | fact            | value     |
        | load            | on_demand |
        | resident        | yes       |
        | swaps           | 0         |
        | metrics.loads   | 1         |
        | metrics.load_ms | 4000.0    |

    Scenario: Afterwards the estimate is what loading took
      Given "red" has been loaded
      And "blue" has been loaded
      When a task arrives, of model "red"
      Then it is admitted at position 0, to start in 4000 ms

    Scenario: A deadline that the load would break is refused at once
      When a task arrives, of model "red", due in 8 seconds
      Then it is refused as DEADLINE_UNMET

    Scenario: All who wait share one load
      Given a task "one" arrives, of model "red"
      And a task "two" arrives, of model "red"
      When 5 seconds pass
      Then "one" ends with length after 20 tokens
      And "two" ends with length after 20 tokens
      And pool "red" shows
        | fact          | value |
        | metrics.loads | 1     |

    Scenario: Nothing is loaded that nobody wants, and the pools are shown as usable
      When 60 seconds pass
      Then the list of pools shows
        | pool | load      | resident | ready | live | swaps |
        | red  | on_demand | False    | True  | True | 0     |
        | blue | on_demand | False    | True  | True | 0     |

    Scenario: The daemon is ready though nothing is loaded
      When a probe asks whether it is ready
      Then it is ready

    Scenario: A task that is cancelled while it waits is over, and the load serves the next one
      Given a task "first" arrives, of model "red"
      And somebody cancels "first"
      And a task "second" arrives, of model "red"
      When 5 seconds pass
      Then "first" is canceled
      And "second" ends with length after 20 tokens

    Scenario: Of two pools with the same model the loaded one is chosen
      Given pools "home" and "cold" serve model "shared"
      And model "cold" is loaded on demand
      When a task arrives, of model "shared"
      Then it is in pool "home"

  Rule: What is idle makes room, and what works is never cut

    Scenario: An idle model goes at once
      Given "blue" has been loaded
      And a task arrives, of model "red"
      When 5 seconds pass
      Then it ends with length after 20 tokens
      And pool "blue" shows
        | fact     | value |
        | resident | no    |
        | swaps    | 1     |
        | ready    | yes   |
        | live     | yes   |

    Scenario: One that was just loaded stays for a while
      Given "blue" stays for 30 seconds at least
      And "blue" has been loaded
      And a task arrives, of model "red"
      When 28 seconds pass
      Then it waits for "room: blue"
      And "blue" is in memory

    Scenario: And then it goes
      Given "blue" stays for 30 seconds at least
      And "blue" has been loaded
      And a task arrives, of model "red"
      When 30 seconds pass
      Then it waits for "load"
      And "blue" is not in memory

    Scenario: A busy one works on, and what comes for it is served
      Given "blue" has work, and "next" has waited for "red" for 59 seconds
      When the engine of "blue" gives 20 tokens
      Then "running" ends with length after 20 tokens
      And "queued" is starting
      And "next" waits for "room: blue"

    Scenario: When the other has waited long enough, it is given nothing more to do
      Given "blue" has work, and "next" has waited for "red" for 60 seconds
      When the engine of "blue" gives 1 token
      Then "running" is running
      And "queued" waits for "yield: red"
      And "next" waits for "room: blue"

    Scenario: Having finished what it has, it goes
      Given "blue" has work, and "next" has waited for "red" for 60 seconds
      When the engine of "blue" is let go
      Then "running" ends with length after 20 tokens
      And "queued" is queued
      And "next" waits for "load"

    Scenario: Everybody has a turn
      Given "blue" has work, and "next" has waited for "red" for 60 seconds
      And the engine of "blue" is let go
      When 10 seconds pass
      Then "next" ends with length after 20 tokens
      And "queued" ends with length after 20 tokens

    Scenario: If nobody waits for the other any more, it works on
      Given "blue" has work, and "next" has waited for "red" for 60 seconds
      And somebody cancels "next"
      When the engine of "blue" is let go
      Then "queued" ends with length after 20 tokens
      And "blue" is in memory

    Scenario: The estimate says how long a busy one may keep it out
      Given "blue" has work, and "next" has waited for "red" for 1 second
      And a task "long" arrives, of model "blue", of 3800 tokens, with a context of 4096
      When a task "longer" arrives, of model "blue", of 3900 tokens, with a context of 4096
      Then "next" is to start in 69150 ms

    Scenario: An idle model may go by itself
      Given "red" goes by itself after 10 minutes without work
      And "red" has been loaded
      When 10 minutes pass
      Then pool "red" shows
        | fact     | value |
        | resident | no    |
        | swaps    | 0     |

    Scenario: Swaps are counted, and those in vain
      Given "red" has been loaded
      And "blue" has been loaded
      And a task arrives, of model "red"
      When 5 seconds pass
      Then the figures are
        | series                             | labels                      | value |
        | orchestratord_model_loads_total    | pool_id=red, outcome=ready  | 2     |
        | orchestratord_model_loads_total    | pool_id=blue, outcome=ready | 1     |
        | orchestratord_model_unloads_total  | pool_id=red, reason=room    | 1     |
        | orchestratord_model_unloads_total  | pool_id=blue, reason=room   | 1     |
        | orchestratord_model_thrash_total   | pool_id=red                 | 1     |
        | orchestratord_model_thrash_total   | pool_id=blue                | none  |
        | orchestratord_model_resident       | pool_id=red                 | 1     |
        | orchestratord_model_resident       | pool_id=blue                | 0     |
        | orchestratord_model_load_ms_count  | pool_id=red                 | 2     |

  Rule: A model that cannot be loaded is said to be so

    Scenario: After a few attempts those who wait are told, and may come back
      Given the engine of "red" goes down
      And a task arrives, of model "red"
      When 4 seconds pass
      Then it fails as POOL_UNAVAILABLE after 0 tokens, worth retrying
      And the message of it says "could not be loaded"
      And pool "red" shows
        | fact               | value                             |
        | resident           | no                                |
        | ready              | no                                |
        | last_error.code    | POOL_UNAVAILABLE                  |
        | last_error.message | lost: nothing accepts connections |

    Scenario: Meanwhile nothing is taken for it
      Given the engine of "red" goes down
      And a task "first" arrives, of model "red"
      And 4 seconds pass
      When a task arrives, of model "red"
      Then it is refused as POOL_UNAVAILABLE
      And it may be retried after 29 seconds

    Scenario: Later it is tried again
      Given the engine of "red" goes down
      And a task "first" arrives, of model "red"
      And the engine of "red" comes back
      And a task "later" arrives, of model "red"
      When 5 seconds pass
      Then "later" ends with length after 20 tokens

    Scenario: A failed attempt does not keep the room
      Given the engine of "red" goes down
      And a task "first" arrives, of model "red"
      And a task "other" arrives, of model "blue"
      When 5 seconds pass
      Then "other" ends with length after 20 tokens

    Scenario: What another pool can do goes there
      Given pools "home" and "cold" serve model "shared"
      And model "cold" is loaded on demand
      And the engine of "cold" goes down
      And a task arrives, of model "shared", preferring "cold"
      When 4 seconds pass
      Then it is in pool "home"
      And it ends with length after 20 tokens

    Scenario: A model that does not fit beside what is always loaded is said not to
      Given models "home" and "cellar" are always loaded, and two do not fit
      And a task arrives, of model "red"
      When 4 seconds pass
      Then it fails as POOL_UNAVAILABLE
      And the message of it says "does not fit into memory"

    Scenario: Nor are two that are always loaded started together if they do not fit
      Given models "attic" and "home" are always loaded, and two do not fit
      When an operator looks at pool "home"
      Then the pool shows
        | fact               | value                                                                         |
        | resident           | no                                                                            |
        | ready              | no                                                                            |
        | last_error.message | The model of pool home does not fit into memory beside what is always loaded. |
      And "attic" is in memory

  Rule: What an engine that is not loaded could not be asked is asked once it is

    Scenario: A conversation is rendered then
      Given a task arrives, of model "red", as a conversation
      When 5 seconds pass
      Then it ends with length after 20 tokens

    Scenario: Without a chat template it ends, and not in silence
      Given the engine of "red" has no chat template
      And a task arrives, of model "red", as a conversation
      When 5 seconds pass
      Then it fails as INVALID_PARAMS
      And the message of it says "no chat template"

    Scenario: A knob the model does not have ends the task
      Given a task arrives, of model "red", bound to a grammar
      When 5 seconds pass
      Then it fails as INVALID_PARAMS
      And the message of it says "cannot honour sampling.grammar"

    Scenario: Once it is known, it is refused at once
      Given "red" has been loaded
      And "blue" has been loaded
      When a task arrives, of model "red", bound to a grammar
      Then it is refused as INVALID_PARAMS by rule unsupported_sampling

    Scenario: A prompt that turns out to be too long ends the task
      Given a task arrives, of model "red", of 300 words
      When 5 seconds pass
      Then it fails as INVALID_PARAMS
      And the message of it says "there is room for"

    Scenario: A context the model does not have ends the task
      Given a slot of "red" holds 128 tokens
      And a task arrives, of model "red"
      When 5 seconds pass
      Then it fails as INVALID_PARAMS

  Rule: Operations and restarts

    Scenario: Tasks that waited for their model wait for it again after a restart
      Given a daemon that keeps its journal on disk
      And a task arrives, of model "red"
      And the daemon restarts
      When 5 seconds pass
      Then it ends with length after 20 tokens

    Scenario: A drained pool is not loaded
      Given "blue" has work, and "next" has waited for "red" for 1 second
      And an operator drains pool "red"
      When the engine of "blue" is let go
      Then "queued" ends with length after 20 tokens
      And "red" is not in memory
      And "next" waits for a resume

    Scenario: A resume loads it for those who waited
      Given a task arrives, of model "red"
      And an operator drains pool "red"
      And an operator resumes pool "red"
      When 5 seconds pass
      Then it ends with length after 20 tokens

    Scenario: A pool that is not loaded can be reloaded
      Given the next model of "red" is as good as the old one
      And an operator reloads pool "red"
      When 5 seconds pass
      Then pool "red" shows
        | fact            | value          |
        | operation.state | succeeded      |
        | model_ref       | file:next.gguf |
        | resident        | yes            |

    Scenario: An idle model makes room for a reload, too
      Given the next model of "red" is as good as the old one
      And "blue" has been loaded
      And an operator reloads pool "red"
      When 5 seconds pass
      Then pool "red" shows
        | fact            | value     |
        | operation.state | succeeded |
        | resident        | yes       |
      And "blue" is not in memory

    Scenario: A reload that fails leaves it as it was
      Given the next model of "red" cannot decode
      And an operator reloads pool "red"
      When 5 seconds pass
      Then pool "red" shows
        | fact            | value         |
        | operation.state | rolled_back   |
        | model_ref       | file:red.gguf |
        | resident        | no            |

    Scenario: And usable
      Given the next model of "red" cannot decode
      And an operator reloads pool "red"
      And a task arrives, of model "red"
      When 10 seconds pass
      Then it ends with length after 20 tokens
