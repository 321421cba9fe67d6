/* What PyTorch 2.13 looks up in NCCL 2.29 and versions before it lack. On one GPU none is called;
   should one be, it says ncclInternalError. */
#define MISSING(name) \
    int name(void) { return 3; }
MISSING(ncclCommMemStats)
MISSING(ncclCommResume)
MISSING(ncclCommSuspend)
MISSING(ncclGetLsaMultimemDevicePointer)
MISSING(ncclGetPeerDevicePointer)
MISSING(ncclPutSignal)
MISSING(ncclSignal)
MISSING(ncclWaitSignal)
