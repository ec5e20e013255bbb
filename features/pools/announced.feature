Feature: Operations that are still to come
  The contract announces what operators will be able to do. Until it is there they get a clear
  no, and never a yes that does nothing.

  @OD-14
  Rule: What is announced and not there says so

    Scenario: Drain, reload and resume are not there yet
      When every operation on a pool that is announced is called on "home"
      Then all 3 are refused as NOT_IMPLEMENTED

    Scenario: The catalog is not there yet
      When every operation on the whole catalog is called
      Then all 2 are refused as NOT_IMPLEMENTED

    Scenario Outline: Whoever wants to <verb> a pool is told what to do meanwhile
      When an operator <verb>s pool "home"
      Then it is refused as NOT_IMPLEMENTED
      And the daemon explains that "<advice>"

      Examples: what operators want
        | verb   | advice                      |
        | drain  | stop sending tasks          |
        | reload | restart with the new model  |
        | resume | no pool can be draining     |

    Scenario: A pool that does not exist is not found rather than not implemented
      When an operator drains pool "nowhere"
      Then it is refused as NOT_FOUND
