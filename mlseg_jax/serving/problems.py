"""What a request can have wrong: a status of HTTP and one sentence."""


class RequestProblem(Exception):  # noqa: N818 (a problem of the sender)
    """Ends a request.

    Attributes:
      status: of HTTP.
      sentence: what was wrong and what to do, for whoever sent it.
    """

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
