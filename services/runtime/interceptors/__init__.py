"""Server interceptors, one class each, for all four call shapes."""

from services.runtime.interceptors.access_log import AccessLog as AccessLog
from services.runtime.interceptors.base import Around as Around
from services.runtime.interceptors.deadline import Deadline as Deadline
from services.runtime.interceptors.drain import Drain as Drain
from services.runtime.interceptors.errors import Errors as Errors
from services.runtime.interceptors.message_size import MessageSize as MessageSize
from services.runtime.interceptors.metrics import Metrics as Metrics
from services.runtime.interceptors.request_id import RequestId as RequestId
from services.runtime.interceptors.tenant import Tenant as Tenant
from services.runtime.interceptors.trace import TraceContext as TraceContext
