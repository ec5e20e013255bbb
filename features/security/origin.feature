Feature: Hosts and origins
  A page in somebody's browser must not reach a daemon on the same machine by a name that
  was made to point there. So a daemon answers only to its own names.

  @AUTH-1007
  Rule: A foreign host or origin is refused

    Scenario: No operation answers under a foreign host
      When every operation is called as host "evil.example"
      Then all operations of the contracts are refused as FORBIDDEN

    Scenario Outline: <headers> is refused
      When GET /healthz is requested with <headers>
      Then it is refused as FORBIDDEN

      Examples: foreign
        | headers                               |
        | Host "localhost.evil.example"         |
        | Host "192.168.0.7:8080"               |
        | Origin "https://evil.example"         |
        | Origin "null"                         |
        | Origin "http://localhost.evil.example" |

    Scenario Outline: <headers> is its own
      When GET /healthz is requested with <headers>
      Then it lives

      Examples: local
        | headers                          |
        | Host "localhost:8080"            |
        | Host "[::1]:8080"                |
        | Host "LOCALHOST"                 |
        | Origin "http://127.0.0.1:3000"   |

    Scenario: A foreign host is refused before the token is looked at
      Given a daemon with the token "open sesame"
      When GET /healthz is requested without a token, with Host "evil.example"
      Then it is refused as FORBIDDEN

  @AUTH-1007
  Rule: Others can be allowed

    Scenario: An allowed origin may ask
      Given origin "https://console.example" is allowed
      When GET /healthz is requested with Origin "https://console.example"
      Then it lives

    Scenario: An allowed origin is allowed in full or not at all
      Given origin "https://console.example" is allowed
      When GET /healthz is requested with Origin "http://console.example"
      Then it is refused as FORBIDDEN

    Scenario: An allowed host is one of its names
      Given host "box.lan" is allowed
      When GET /healthz is requested with Host "box.lan:8080"
      Then it lives
