Feature: Looking at tasks
  A client that lost track, and a person who wonders what the machine does, can see every task
  that is still kept, the newest first.

  @OD-10
  Rule: A task can be read at any time

    @portable @smoke
    Scenario: A finished task tells how it went
      Given a task arrives
      When it has been read to the end
      Then it is ended

    Scenario: A running task tells where it runs
      Given the engine of "home" holds its tokens back
      And a task arrives
      When the engine of "home" gives 2 tokens
      Then its status tells
        | state   | pool_id | replica_id | engine_version | tokens_out | last_event_id |
        | running | home    | r0         | mock-1         | 2          | 3             |

    Scenario: A waiting task tells its place and its start
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      When a task arrives
      Then it has queue_position 0
      And it has predicted_start_ms 150

    Scenario: A task in a pool whose replicas are gone waits for one
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives
      When the engine of "home" goes down
      Then it waits for a replica

    @portable
    Scenario: A task nobody sent is unknown
      When somebody looks for the task "unsent"
      Then it is refused as NOT_FOUND

    Scenario: A finished task is forgotten after an hour
      Given a task arrives
      When 61 minutes pass
      Then there is no trace of it

    Scenario: Until then it is known
      Given a task arrives
      When 59 minutes pass
      Then it is ended

  @OD-10
  Rule: Lists are newest first, page by page

    @portable
    Scenario: A task that just arrived begins the list
      Given a task arrives
      When somebody looks at the list of tasks
      Then the list begins with it

    Scenario: The newest comes first
      Given interactive tasks "A", "B" and "C" arrive
      When somebody looks at the list of tasks
      Then the list of tasks reads "C", "B" and "A"

    Scenario: Only tasks in one state
      Given pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And interactive tasks "A" and "B" arrive
      When somebody lists queued tasks
      Then the list of tasks reads "B" and "A"

    @portable
    Scenario: Only tasks of one session
      Given a task "mine" arrives, in session "S"
      And a task "other" arrives, in session "T"
      When somebody lists the tasks of session "S"
      Then the list of tasks reads "mine"

    Scenario: Pages show every task once
      When interactive tasks "A", "B", "C", "D" and "E" arrive
      Then pages of 2 show "E", "D", "C", "B" and "A", page by page

    @portable
    Scenario: No list takes a cursor it did not make
      When every list is asked for with a cursor it did not make
      Then each is refused as INVALID_PARAMS

    @portable
    Scenario: No list has pages without items
      When every list is asked for pages of 0
      Then each is refused as INVALID_PARAMS

    @portable
    Scenario: A misspelt parameter gets the name that was probably meant
      When GET /v1/tasks?stat=queued is requested
      Then it is refused as INVALID_PARAMS
      And the message says "Did you mean 'state'?"
