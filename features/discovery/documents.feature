Feature: Documents
  The daemon brings its own reference: the contracts as programs read them and as people do.
  What they do not list is not there.

  @OD-12
  Rule: The contracts are served

    @portable
    Scenario Outline: The <document> contract is one whole document
      When somebody fetches the "<document>" contract
      Then it is a whole OpenAPI document with operation <operation>

      Examples: contracts
        | document | operation  |
        | data     | createTask |
        | control  | listPools  |

    @portable
    Scenario Outline: The <document> contract says the same in YAML
      When somebody fetches the "<document>" contract in YAML
      Then it is the document that is served as JSON

      Examples: contracts in YAML
        | document |
        | data     |
        | control  |

    @portable
    Scenario: A contract that does not exist is refused
      When somebody fetches the "other" contract
      Then it is refused as INVALID_PARAMS

    @portable
    Scenario: The reference page has every operation
      When somebody opens the reference page
      Then the page has every operation
      And it loads nothing from elsewhere

  @OC-CTRL-2062
  Rule: Nothing else is served

    @portable
    Scenario Outline: <path> is not served
      When GET <path> is requested
      Then it is refused as NOT_FOUND

      Examples: what others might have
        | path             |
        | /v1/replicasets  |
        | /v1/tasks/       |
        | /                |
        | /v1/completions  |

    @portable
    Scenario Outline: <method> is not for <path>
      When <method> <path> is requested
      Then it is refused as METHOD_NOT_ALLOWED
      And header Allow is "<allowed>"

      Examples: methods that do not fit
        | method | path              | allowed   |
        | PUT    | /v1/tasks         | GET, POST |
        | DELETE | /v1/pools         | GET       |
        | GET    | /v1/pools/x/drain | POST      |

    @portable
    Scenario: HEAD is not served
      When HEAD /healthz is requested
      Then the answer is 405
