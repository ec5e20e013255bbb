Feature: Correlation
  A client can name its request, and finds that name on the answer and in the log. A name that
  could harm a log is replaced, and is never a reason to refuse.

  @OD-15
  Rule: A well-formed id comes back, any other is replaced

    @portable
    Scenario: An id of the client comes back
      When GET /healthz is requested with X-Correlation-Id "agent-7:step.3_a"
      Then header X-Correlation-Id is "agent-7:step.3_a"

    @portable
    Scenario: It comes back on refusals too
      When GET /v1/replicasets is requested with X-Correlation-Id "agent-7"
      Then header X-Correlation-Id is "agent-7"

    @portable
    Scenario Outline: The id "<given>" is replaced, not refused
      When GET /healthz is requested with X-Correlation-Id "<given>"
      Then it lives
      And the correlation id is a fresh one

      Examples: what no id may be
        | given          |
        | two words      |
        | {"json":1}     |
        | <script>       |

    Scenario: Every answer without one has an id of its own
      When every operation is called
      Then each answer has a correlation id of its own
