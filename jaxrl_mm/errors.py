"""What a user did wrong, as opposed to what the program did wrong."""


class InputError(ValueError):
  """A mistake in a config, a file or a command line.

  Its message is one sentence that says what is wrong, where, and how to mend
  it. `main` prints that sentence alone; a library caller sees a `ValueError`.
  """
