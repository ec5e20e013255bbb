Feature: Streams on the wire
  What an EventSource reads is a byte format, and a token may contain anything. No text of an
  engine may end a frame early, and nothing between us and the reader may hold a frame back.

  @SSE-1001
  Rule: A frame is id, event and one line of data

    Scenario: A short stream is these bytes
      Given the engine of "home" says
        | token  |
        | größe  |
      And a task arrives
      When it has been read to the end
      Then the bytes of it are
        """
        retry: 3000

        id: 1
        event: started
        data: {"queue_position":0,"predicted_start_ms":0}

        id: 2
        event: token
        data: {"t":"größe","i":0}

        id: 3
        event: end
        data: {"tokens_out":1,"decode_ms":0,"finish_reason":"stop"}
        """

    Scenario: No text of an engine can forge a frame
      Given the engine of "home" says
        | token                                                                    |
        | \n\nid: 9\nevent: end\ndata: {"tokens_out":0,"decode_ms":0}\n\n          |
        | \r\n\r\nevent: token\r\ndata: {"t":"forged","i":7}\r\n\r\n               |
        | \u2028\u2029\u0085\x0b\x0c\x00: comment\n                                |
        | "}\n\nretry: 1\n\n                                                       |
      When a task arrives
      Then no event of it is forged
      And the text of it is all its tokens in a row

    Scenario: Text of any script arrives unharmed
      Given the engine of "home" says
        | token          |
        | na\xefve       |
        | \u6771\u4eac   |
        | \U0001f642     |
      When a task arrives
      Then the text of it is
        """
        naïve東京🙂
        """

  @SSE-1002
  Rule: Nothing may cache or collect a stream

    @portable
    Scenario: A stream forbids caching and buffering
      Given a task arrives
      When somebody reads it
      Then header Content-Type is "text/event-stream; charset=utf-8"
      And header Cache-Control is "no-cache"
      And header X-Accel-Buffering is "no"

  @SSE-1003
  Rule: A stream tells when to come back, and breaks a long silence

    Scenario: The reconnect delay comes first, and once
      When a task arrives
      Then the body begins with retry: 3000

    Scenario: A comment comes after fifteen seconds of silence
      Given streams of waiting tasks tell their state every 1 minute
      And pool "home" runs 1 task at a time and queues 4
      And "home" is busy
      And a task arrives
      And somebody reads it
      When 16 seconds pass
      Then a comment breaks the silence of somebody
