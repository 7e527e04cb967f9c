"""Manifests of other drivers, in the form of their documentation, for tests of ``hayloft migrate`` and its page."""

from __future__ import annotations

MOUNTPOINT = """\
# The dataset of the vision team
apiVersion: v1
kind: PersistentVolume
metadata:
  name: s3-pv  # keep this name
spec:
  capacity:
    storage: 1200Gi
  accessModes:
    - ReadWriteMany
  storageClassName: ""
  claimRef:
    namespace: default
    name: s3-pvc
  mountOptions:
    - allow-delete
    - region us-east-1
    - prefix train/images/
    - --uid=1000
    - file-mode=0664
    - metadata-ttl 300
    - fancy-new-flag 7
  csi:
    driver: s3.csi.aws.com
    volumeHandle: s3-csi-driver-volume
    volumeAttributes:
      # the bucket of the team
      bucketName: amzn-s3-demo-bucket
      cache: emptyDir
      authenticationSource: driver
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: s3-pvc
spec:
  accessModes:
    - ReadWriteMany
  storageClassName: ""
  resources:
    requests:
      storage: 1200Gi
  volumeName: s3-pv
---
apiVersion: v1
kind: Pod
metadata:
  name: s3-app
spec:
  containers:
    - name: app
      image: example.com/train:1
      volumeMounts:
        - name: data
          mountPath: /data
  volumes:
    - name: data
      persistentVolumeClaim:
        claimName: s3-pvc
"""

GCSFUSE = """\
apiVersion: v1
kind: PersistentVolume
metadata:
  name: models
spec:
  accessModes: [ReadWriteMany]
  capacity: {storage: 5Gi}
  storageClassName: by-name
  claimRef: {namespace: serving, name: models}
  mountOptions:
    - implicit-dirs
    - only-dir=models
    - uid=1001
    - file-cache:max-size-mb:-1
    - metadata-cache:ttl-secs:-1
    - read_ahead_kb=1024
  csi:
    driver: gcsfuse.csi.storage.gke.io
    volumeHandle: handle-bucket:models
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: models, namespace: serving}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: by-name
  volumeName: models
  resources: {requests: {storage: 5Gi}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: serving}
spec:
  selector:
    matchLabels: {app: server}
  template:
    metadata:
      labels: {app: server}
      annotations:
        gke-gcsfuse/volumes: "true"
        gke-gcsfuse/memory-limit: 2Gi
        example.com/mine: "yes"
    spec:
      serviceAccountName: server
      containers:
        - name: server
          image: example.com/serve:1
          volumeMounts: [{name: model, mountPath: /model}]
      volumes:
        - name: model
          csi:
            driver: gcsfuse.csi.storage.gke.io
            volumeAttributes:
              bucketName: inline-bucket
              mountOptions: implicit-dirs,file-cache:enable-parallel-downloads:true
              fileCacheCapacity: 100Gi
              fileCacheForRangeRead: "true"
"""

CSI_S3 = """\
apiVersion: v1
kind: Secret
metadata:
  namespace: kube-system
  name: csi-s3-secret
stringData:
  accessKeyID: AKIDEXAMPLE  # of the team
  secretAccessKey: very-secret
  endpoint: https://storage.yandexcloud.net
  region: ""
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: csi-s3-existing-bucket
provisioner: ru.yandex.s3.csi
parameters:
  mounter: geesefs
  options: "--memory-limit 1000 --dir-mode 0777 --file-mode=0666 --no-systemd -o noatime"
  bucket: some-bucket
  csi.storage.k8s.io/provisioner-secret-name: csi-s3-secret
  csi.storage.k8s.io/provisioner-secret-namespace: kube-system
  csi.storage.k8s.io/controller-publish-secret-name: csi-s3-secret
  csi.storage.k8s.io/controller-publish-secret-namespace: kube-system
  csi.storage.k8s.io/node-stage-secret-name: csi-s3-secret
  csi.storage.k8s.io/node-stage-secret-namespace: kube-system
  csi.storage.k8s.io/node-publish-secret-name: csi-s3-secret
  csi.storage.k8s.io/node-publish-secret-namespace: kube-system
---
apiVersion: v1
kind: PersistentVolume
metadata:
  name: manualbucket-with-path
spec:
  storageClassName: csi-s3
  capacity:
    storage: 10Gi
  accessModes:
    - ReadWriteMany
  csi:
    driver: ru.yandex.s3.csi
    controllerPublishSecretRef:
      name: csi-s3-secret
      namespace: kube-system
    nodePublishSecretRef:
      name: csi-s3-secret
      namespace: kube-system
    nodeStageSecretRef:
      name: csi-s3-secret
      namespace: kube-system
    volumeAttributes:
      capacity: 10Gi
      mounter: geesefs
      options: --memory-limit 1000 --dir-mode 0777 --file-mode 0666
    volumeHandle: manualbucket/path
"""

JUICEFS = """\
apiVersion: v1
kind: PersistentVolume
metadata: {name: jfs}
spec:
  capacity: {storage: 10Pi}
  accessModes: [ReadWriteMany]
  csi:
    driver: csi.juicefs.com
    volumeHandle: jfs
    fsType: juicefs
    nodePublishSecretRef: {name: juicefs-secret, namespace: default}
"""
