Feature: Retention of transcripts
  The daemon keeps transcripts for a while and not for ever. It never takes away what a client has stored, or what
  something else that can still be asked for refers to.

  Background:
    Given tasks and sessions are kept for 1 second, their transcripts for 2 minutes

  @OD-40
  Rule: Old transcripts go, the oldest first

    Scenario: A transcript is there for its time
      Given a task has left its transcript
      When 110 seconds pass
      Then the transcript of it can be read

    Scenario: A transcript past its time is gone
      Given a task has left its transcript
      When 140 seconds pass
      Then the transcript of it is gone

    Scenario: Beyond the bytes they may have the oldest go first
      Given transcripts may have the bytes of 2
      And "first", "second" and "third" have left their transcripts
      When 30 seconds pass
      Then the transcript of "first" is gone
      And the transcript of "second" can be read
      And the transcript of "third" can be read

    Scenario: A daemon that starts looks at what it finds
      Given a daemon that keeps its journal on disk
      And a task has left its transcript
      And 15 seconds pass
      And transcripts may have 0 bytes from the next start on
      When the daemon restarts
      Then the transcript of it is gone

  @OD-40
  Rule: What is still of use stays

    Scenario: A task that can be asked for has its transcript
      Given tasks are kept for 1 hour
      And a task has left its transcript
      When 10 minutes pass
      Then the transcript of it can be read

    Scenario: What a client has stored too is the client's
      Given a task has left its transcript
      And somebody stores the transcript of it
      When 140 seconds pass
      Then the transcript of it can be read

    Scenario: What an artifact names as its parent stays with it
      Given a task has left its transcript
      And somebody stores a plan that comes from the transcript of it
      When 140 seconds pass
      Then the transcript of it can be read

    Scenario: What went can be stored again
      Given a task has left its transcript
      And somebody reads the transcript of it
      And 140 seconds pass
      And somebody stores what was read
      When 140 seconds pass
      Then the transcript of it can be read
