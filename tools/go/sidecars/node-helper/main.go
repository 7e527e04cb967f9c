// node-helper does what node-driver-registrar and livenessprobe do: neither is published as a Go module.
//
//	node-helper --csi-address=/csi/csi.sock --kubelet-registration-path=PATH    registers the driver with kubelet
//	node-helper --csi-address=/csi/csi.sock --health-port=9808                  answers /healthz with a Probe
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type registrar struct {
	registration.UnimplementedRegistrationServer
	name, path string
}

func (one registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: one.name, Endpoint: one.path, SupportedVersions: []string{"1.0.0"}}, nil
}

func (one registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Fatalf("registration failed: %s", status.Error)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	address := flag.String("csi-address", "/csi/csi.sock", "socket of the driver")
	path := flag.String("kubelet-registration-path", "", "socket of the driver, as kubelet sees it")
	port := flag.String("health-port", "", "port of /healthz")
	flag.Parse()
	connection, err := grpc.NewClient("unix://"+*address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		log.Fatal(err)
	}
	identity := csi.NewIdentityClient(connection)
	if *port != "" {
		http.HandleFunc("/healthz", func(answer http.ResponseWriter, request *http.Request) {
			deadline, cancel := context.WithTimeout(request.Context(), 4*time.Second)
			defer cancel()
			if _, err := identity.Probe(deadline, &csi.ProbeRequest{}); err != nil {
				http.Error(answer, err.Error(), http.StatusInternalServerError)
			}
		})
		log.Fatal(http.ListenAndServe(":"+*port, nil))
	}
	var info *csi.GetPluginInfoResponse
	for {
		if info, err = identity.GetPluginInfo(context.Background(), &csi.GetPluginInfoRequest{}); err == nil {
			break
		}
		log.Print(err)
		time.Sleep(time.Second)
	}
	socket := "/registration/" + info.Name + "-reg.sock"
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		<-ended
		server.Stop() // which removes the socket: the driver is no longer registered
	}()
	registration.RegisterRegistrationServer(server, registrar{name: info.Name, path: *path})
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
