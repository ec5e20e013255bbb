Feature: Durable admission
  A 202 is a promise. It is given only when the journal has the task, so neither a full disk
  nor a restart can make an accepted task vanish, or run twice.

  @ORCH-3006 @OD-16
  Rule: What cannot be written is not accepted

    Background:
      Given a daemon that keeps its journal on disk

    Scenario: A task the journal cannot take leaves no trace
      Given a task "before" arrives
      And the disk of the journal is full
      When a task "lost" arrives
      Then "lost" is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
      And there is no trace of "lost"
      But "before" ends with length after 20 tokens

    Scenario: A task the journal could not take uses no turn of its session
      Given a task "before" arrives, in session "S"
      And the disk of the journal is full
      When a task "lost" arrives, in session "S"
      Then "lost" is refused as STORAGE_UNAVAILABLE
      And session "S" shows 1 turn

    Scenario: A task that was lost can be sent again once there is room
      Given a task "before" arrives
      And the disk of the journal is full
      And a task "lost" arrives
      And the disk of the journal has room again
      When it is sent again
      Then it is a first answer
      And it ends with length after 20 tokens

    Scenario: While the journal cannot be written the daemon says it is not ready
      Given a task arrives
      And the disk of the journal is full
      And another task arrives
      When a probe asks whether it is ready
      Then it is not ready: "the journal cannot be written"

  @ORCH-3006 @OD-17
  Rule: What was accepted survives a restart

    Background:
      Given a daemon that keeps its journal on disk
      And pool "home" runs 1 task at a time and queues 4

    Scenario: Waiting tasks run after the restart, in their order
      Given the engine of "home" takes 100 ms for a token
      And "home" is busy
      And interactive tasks "A" and "B" arrive
      And the daemon restarts
      When 1 minute passes
      Then "A" and "B" started in this order

    Scenario: A finished task is still known, with its text
      Given a task arrives
      And it has been read to the end
      When the daemon restarts
      Then it has finish_reason length
      And the text of it is all its tokens in a row

    Scenario: An equal request after the restart is still the same task
      Given a task arrives
      And it has been read to the end
      And the daemon restarts
      When it is sent again
      Then it is the first answer again
      And no tasks reached the engine of "home"

    Scenario: Sessions go on after the restart
      Given a task arrives, in session "S"
      When the daemon restarts
      Then session "S" shows 1 turn

  @OC-CTRL-2028 @OD-17
  Rule: A task that has spoken is not run again

    Scenario: A stop ends a running task after its grace, and says so
      Given a daemon that keeps its journal on disk
      And the engine of "home" holds its tokens back
      And a task arrives
      And the engine of "home" gives 2 tokens
      When the daemon restarts
      Then it fails as WORKER_RESET
      And no tasks reached the engine of "home"
