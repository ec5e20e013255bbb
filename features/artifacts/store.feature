Feature: Artifacts
  Agents leave plans, summaries and diffs for each other. Each is kept under the hash of what
  it says, so equal ones are kept once and a name can never come to mean something else.

  @OC-CTRL-2065
  Rule: The name of an artifact is the hash of its content

    @portable
    Scenario: An artifact is stored under the hash of its canonical form
      When somebody stores a plan
      Then it is stored under the hash of its canonical form

    Scenario: The same content is kept once
      Given somebody stores a plan
      When somebody stores the same plan with its tags in another order
      Then both have the same id and there is one artifact

    @portable
    Scenario: The order of tags does not make another artifact
      Given somebody stores a plan
      When somebody stores the same plan with its tags in another order
      Then both have the same id

    @portable
    Scenario: A kind outside the closed list is refused
      When somebody stores a "poem"
      Then it is refused as INVALID_PARAMS
      And the message says "kind"

  @OC-CTRL-2066
  Rule: Reading is checked, and cheap for who has it already

    @portable @smoke
    Scenario: An artifact reads as it was stored
      Given somebody stores a plan
      When somebody reads the artifact
      Then it is the plan, with its tags in order

    @portable
    Scenario Outline: Who holds the artifact already gets nothing again
      Given somebody stores a plan
      When somebody reads the artifact, holding <what> of it
      Then nothing is sent again

      Examples:
        | what        |
        | a copy      |
        | any copy    |
        | many copies |

    @portable
    Scenario: Who holds something else gets the artifact
      Given somebody stores a plan
      When somebody reads the artifact, holding an old copy of it
      Then it is the plan, with its tags in order

    Scenario: A damaged artifact is not served
      Given the store of artifacts works
      And somebody stores a plan
      And the stored bytes rot
      When somebody reads the artifact
      Then it is refused as NOT_FOUND

  @OD-13
  Rule: Artifacts can be listed, newest first

    @portable
    Scenario: A list can be narrowed to a tag
      Given somebody stores "apple" tagged with a word of its own
      When somebody lists artifacts with that tag
      Then the artifacts are "apple"

    Scenario: The newest artifact comes first
      Given somebody stores "old" tagged "x"
      And 1 second passes
      And somebody stores "new" tagged "y"
      When somebody lists artifacts
      Then the artifacts are "new" and "old"

    Scenario: Only artifacts with the tag are listed
      Given somebody stores "apple" tagged "fruit"
      And somebody stores "leek" tagged "root"
      When somebody lists artifacts tagged "fruit"
      Then the artifacts are "apple"

    Scenario: Pages show every artifact once
      Given somebody stores "1" tagged "x"
      And 1 second passes
      And somebody stores "2" tagged "x"
      And 1 second passes
      When somebody stores "3" tagged "x"
      Then pages of 2 show the artifacts "3", "2" and "1", page by page

  @OD-14
  Rule: A store that fails says so

    Scenario: A full store takes nothing
      Given the store of artifacts is full
      When somebody stores a plan
      Then it is refused as STORAGE_UNAVAILABLE
      And it may be retried after 1 second

    Scenario: A store that cannot be read says so
      Given the store of artifacts works
      And somebody stores a plan
      And the store of artifacts breaks
      When somebody reads the artifact
      Then it is refused as STORAGE_UNAVAILABLE

    Scenario: A store that cannot be listed says so
      Given the store of artifacts works
      And somebody stores a plan
      And the store of artifacts breaks
      When somebody lists artifacts
      Then it is refused as STORAGE_UNAVAILABLE
