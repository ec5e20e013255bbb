Feature: The log
  Whoever reads the log can follow a task from its arrival to its end, by fields that programs
  find and by sentences that people read.

  @ORCH-3027 @ORCH-3028
  Rule: A task's life is a sentence each

    Scenario: A task that ends well is told in four lines, however many tokens it has
      Given the engine of "home" takes 50 ms for a token
      And a task arrives
      When 2 seconds pass
      Then the log tells of it
        | event         | sentence                                       |
        | task_placed   | chose pool home out of 1                       |
        | task_admitted | accepted at position 0, expected to start in 0 ms |
        | task_started  | started on home/r0 after 0 ms in the queue     |
        | task_ended    | finished: length                               |

    Scenario: A canceled task says who ended it
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives
      When somebody cancels it
      Then the log tells of it
        | event         | sentence                                            |
        | task_placed   | chose pool home out of 1                            |
        | task_admitted | accepted at position 0, expected to start in 150 ms |
        | task_canceled | finished: canceled, by client                       |

    Scenario: A refused task says why
      When a task arrives, with profile "nobody's"
      Then the log tells of it
        | event         | sentence                |
        | task_rejected | refused: INVALID_PARAMS |
