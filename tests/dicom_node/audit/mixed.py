"""An association that proposes a query beside storage, so that pynetdicom serves it."""

from pynetdicom import AE

from dicom_node.dimse.query_model import STUDY_ROOT


def store_beside_query(port, dataset):
    """Send one instance; gives the status."""
    ae = AE("SCANNER")
    ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    ae.add_requested_context(STUDY_ROOT.find)
    association = ae.associate("127.0.0.1", port, ae_title="SIM4SEG")
    try:
        return association.send_c_store(dataset).Status
    finally:
        association.release()
