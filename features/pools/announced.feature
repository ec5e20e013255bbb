Feature: Operations that are still to come
  The contract announces what operators will be able to do. Until it is there they get a clear
  no, and never a yes that does nothing.

  @OD-14
  Rule: What is announced and not there says so

    Scenario: The catalog is not there yet
      When every operation on the whole catalog is called
      Then all 2 are refused as NOT_IMPLEMENTED
