"""What every call goes through: admission, tokens, request ids, counting, and the error table."""

from reluguard.service.edge.edge import Call, Edge
from reluguard.service.edge.identity import request_id
from reluguard.service.edge.messages import parse

__all__ = ["Call", "Edge", "parse", "request_id"]
