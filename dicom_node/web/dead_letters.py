"""Dead letters over HTTP: jobs that failed, deliveries that were given up, and asking for them once more.

They do what `dicom-node requeue` and `redeliver` do. No patient attribute leaves by this way.
"""

import logging
import re
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dicom_node.errors import CannotRepeat, NotFound
from dicom_node.web.login.who import asker_of
from dicom_node.web.operations import delivery_line, job_line, page_of
from dicom_node.web.services import FRESH, json_response, services_of
from storage.deliveries import DeliveryState, requeue_delivery
from storage.errors import IllegalTransition, InstanceMissing
from storage.jobs import failed_jobs, requeue_job
from storage.tables import Delivery, Job
from storage.worklist import newest_deliveries

OPERATOR_PAGE: Final = "/operator"
WORK_ID: Final = re.compile(r"[0-9a-f]{32}")

logger = logging.getLogger(__name__)


def list_dead_letters(request: Request) -> Response:
    """Answer GET /api/dead-letters: jobs and deliveries that wait for a person."""
    limit, offset = page_of(request)
    with services_of(request).database.reading() as tx:
        jobs = failed_jobs(tx)[offset : offset + limit]
        deliveries = newest_deliveries(tx, state=DeliveryState.FAILED, limit=limit, offset=offset)
        return json_response(
            {
                "jobs": [job_line(tx.get_one(Job, job_id)) for job_id in jobs],
                "deliveries": [delivery_line(row) for row in deliveries],
            }
        )


def requeue(request: Request) -> Response:
    """Answer POST /api/jobs/{id}/requeue: 201 with the new job, the same one when asked twice."""
    job_id = _work_id(request, "job_id", "job")
    by = f"web, {asker_of(request)}"
    try:
        with services_of(request).database.transaction() as tx:
            again = requeue_job(tx, job_id, by)
    except InstanceMissing as error:
        raise NotFound(f"there is no job {job_id}") from error
    except IllegalTransition as error:
        raise CannotRepeat(str(error)) from error
    logger.info("job asked for again", extra={"job_id": again, "reason": f"{job_id} failed; {by}"})
    answer = json_response({"job_id": again, "requeued_from": job_id}, 201)
    answer.headers["Location"] = f"/api/jobs/{again}"
    return _for_asker(request, answer)


def redeliver(request: Request) -> Response:
    """Answer POST /api/deliveries/{id}/redeliver: 202, it is sent as soon as its destination takes it."""
    delivery_id = _work_id(request, "delivery_id", "delivery")
    with services_of(request).database.transaction() as tx:
        if tx.get(Delivery, delivery_id) is None:
            raise NotFound(f"there is no delivery {delivery_id}")
        if not requeue_delivery(tx, delivery_id):
            raise CannotRepeat(f"delivery {delivery_id} is being sent now")
    logger.info("delivery asked for again", extra={"delivery_id": delivery_id, "reason": asker_of(request)})
    return _for_asker(request, json_response({"delivery_id": delivery_id, "state": "QUEUED"}, 202))


def _work_id(request: Request, name: str, what: str) -> str:
    found = str(request.path_params[name])
    if WORK_ID.fullmatch(found) is None:
        raise NotFound(f"there is no {what} of this id")
    return found


def _for_asker(request: Request, answer: Response) -> Response:
    """A person's browser goes back to the page; a program gets the answer."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(OPERATOR_PAGE, 303, FRESH)
    return answer
