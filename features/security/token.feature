Feature: Tokens
  A daemon that others can reach is closed: whoever has no token learns nothing, not even what
  exists. On one's own machine it may be open.

  @AUTH-1001 @AUTH-1002
  Rule: With a token configured every operation needs it

    Background:
      Given a daemon with the token "open sesame"

    Scenario: No operation answers without a token
      When every operation is called without a token
      Then all operations of the contracts are refused as MISSING_TOKEN

    Scenario: No operation answers to a wrong token
      When every operation is called with the token "open sesam"
      Then all operations of the contracts are refused as BAD_TOKEN

    Scenario: The right token opens
      When a task arrives
      Then it ends with length after 20 tokens

    Scenario: Who has no token does not learn which paths exist
      When GET /v1/replicasets is requested without a token
      Then it is refused as MISSING_TOKEN

    Scenario: Nor which methods
      When PUT /v1/tasks is requested without a token
      Then it is refused as MISSING_TOKEN

    Scenario Outline: The credentials "<given>" are not the token
      When GET /v1/pools is requested with Authorization "<given>"
      Then it is refused as BAD_TOKEN
      And header WWW-Authenticate is "Bearer realm="orchestratord", error="invalid_token""

      Examples: nearly
        | given               |
        | Bearer              |
        | Basic open sesame   |
        | Bearer OPEN SESAME  |
        | open sesame         |

  @AUTH-1005
  Rule: Only what is listed as public needs none

    Background:
      Given a daemon with the token "open sesame"
      And "healthz" and "docs" are public

    Scenario Outline: <path> is open
      When GET <path> is requested without a token
      Then the answer is 200

      Examples: public
        | path     |
        | /healthz |
        | /docs    |

    Scenario Outline: <path> is closed
      When GET <path> is requested without a token
      Then it is refused as MISSING_TOKEN

      Examples: not public
        | path               |
        | /readyz            |
        | /metrics           |
        | /openapi/data.json |

  @AUTH-1004
  Rule: AUTH_OPTIONAL opens to true local peers alone

    Background:
      Given a daemon with the token "open sesame"
      And local peers need no token

    Scenario: A local peer needs no token
      When GET /v1/pools is requested without a token
      Then the answer is 200

    Scenario: A local peer with a wrong token is still refused
      When GET /v1/pools is requested with Authorization "Bearer wrong"
      Then it is refused as BAD_TOKEN

    Scenario Outline: A peer that shows <header> came through a proxy
      When GET /v1/pools is requested without a token, with <header> "<value>"
      Then it is refused as MISSING_TOKEN

      Examples: signs of a proxy
        | header            | value          |
        | Forwarded         | for=203.0.113.9 |
        | X-Forwarded-For   | 127.0.0.1      |
        | X-Forwarded-Host  | example.org    |
        | X-Forwarded-Proto | https          |
        | Via               | 1.1 proxy      |

  @AUTH-1003
  Rule: Without a token it does not listen beyond this machine

    Scenario Outline: Without a token it does not listen on <host>
      When the command line starts it on <host> without a token
      Then it does not start and says "there is no AUTH_TOKEN"

      Examples: addresses others can reach
        | host        |
        | 0.0.0.0     |
        | 192.0.2.1   |
        | ::          |

  @AUTH-1008 @ORCH-3035
  Rule: Logs never tell a secret

    Scenario: The log has neither the token nor a prompt
      Given a daemon with the token "open sesame"
      And a task arrives
      When it has been read to the end
      Then the log has no token and no prompt

    Scenario: The log names who asked by the beginning of the hash of the token
      Given a daemon with the token "open sesame"
      When a task arrives
      Then the log says that token:41ef4b asked
