Feature: Resuming a stream
  Connections break. A reader says which event it saw last and gets exactly what it missed,
  so it neither repeats nor loses a word.

  @OC-CTRL-2026
  Rule: A reader that comes back gets what it missed

    Background:
      Given a task arrives, of 5 tokens
      And it has been read to the end

    Scenario: Last-Event-ID names the last event seen
      When somebody reads it with Last-Event-ID 3
      Then somebody sees events 4 to 7 and no others

    @portable
    Scenario: Nothing seen yet is the whole stream
      When somebody reads it after event 0
      Then somebody and "story of it" got the same log, byte for byte

    Scenario Outline: Wherever a reader was, it gets the rest: after event <seen>
      When somebody reads it with Last-Event-ID <seen>
      Then somebody sees events <first> to 7 and no others

      Examples:
        | seen | first |
        | 0    | 1     |
        | 1    | 2     |
        | 2    | 3     |
        | 3    | 4     |
        | 4    | 5     |
        | 5    | 6     |
        | 6    | 7     |

    Scenario: A query parameter does the same
      When somebody reads it after event 3
      Then somebody sees events 4 to 7 and no others

    Scenario: The header counts more than the parameter
      When somebody reads it after event 1 with Last-Event-ID 5
      Then somebody sees events 6 to 7 and no others

    @portable @smoke
    Scenario: Who has seen the end is told to stay away
      When somebody reads it after its last event
      Then it succeeds without content

  @OC-CTRL-2026
  Rule: Then it goes on live

    Scenario: A reader that resumes a running task gets the old and then the new
      Given the engine of "home" holds its tokens back
      And a task arrives, of 4 tokens
      And the engine of "home" gives 2 tokens
      And somebody reads it after event 2
      When the engine of "home" is let go
      Then somebody sees events 3 to 6 and no others

    Scenario Outline: So does one that had seen <seen> of 4 events when it came back
      Given the engine of "home" holds its tokens back
      And a task arrives, of 4 tokens
      And the engine of "home" gives 3 tokens
      And somebody reads it after event <seen>
      When the engine of "home" is let go
      Then somebody sees events <first> to 6 and no others

      Examples:
        | seen | first |
        | 0    | 1     |
        | 1    | 2     |
        | 2    | 3     |
        | 3    | 4     |
        | 4    | 5     |

  @OC-CTRL-2026
  Rule: An id nobody gave is refused

    @portable
    Scenario Outline: Last-Event-ID <value> is refused
      Given a task arrives
      When somebody reads it with Last-Event-ID <value>
      Then it is refused as INVALID_PARAMS by rule last_event_id

      Examples: no number, no event, not yet
        | value         |
        | three         |
        | -1            |
        | 3.0           |
        | 1000000000    |

    @portable
    Scenario: A parameter that no event has yet is refused as well
      Given a task arrives
      When somebody reads it after event 1000000000
      Then it is refused as INVALID_PARAMS by rule last_event_id

    @portable
    Scenario: A task nobody sent has no stream
      When somebody reads a task nobody sent
      Then it is refused as NOT_FOUND

    Scenario: A task past its retention has no stream any more
      Given a task arrives
      And 61 minutes pass
      When somebody reads it
      Then it is refused as NOT_FOUND

  @OC-CTRL-2026
  Rule: Old logs need no memory

    Background:
      Given a daemon that keeps its journal on disk
      And finished logs are kept on disk only
      And a task "old" arrives, of 5 tokens
      And "old" has been read to the end
      And the log of "old" has left memory

    Scenario: An old log is read from the disk, byte for byte
      When somebody reads "old" after event 0
      Then somebody and "story of old" got the same log, byte for byte

    Scenario: An old log that cannot be read says so
      Given the disk of the journal is full
      And another task arrives
      When somebody reads "old"
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second
